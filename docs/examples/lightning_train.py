"""Lightning, without labels: the converted model learns the answers of the original."""

import pytorch_lightning as lightning
from torch.nn.functional import kl_div, log_softmax
from torch.optim import AdamW

import blurify


class Adapting(lightning.LightningModule):
    def __init__(self, original):
        super().__init__()
        self.model = blurify.convert(original).train()  # in here: load_from_checkpoint converts too
        self.teacher = [original.eval().requires_grad_(False)]  # in a list: neither trained nor saved

    def forward(self, pictures):
        return self.model(pictures)

    def training_step(self, batch, index):
        wanted = log_softmax(self.teacher[0].to(self.device)(batch[0]), 1)
        return kl_div(log_softmax(self(batch[0]), 1), wanted, reduction="batchmean", log_target=True)

    def configure_optimizers(self):
        return AdamW(self.model.parameters(), lr=1e-4)


def train(original, loader, out, **options):
    trainer = lightning.Trainer(default_root_dir=out, **options)
    trainer.fit(Adapting(original), loader)
    return trainer
