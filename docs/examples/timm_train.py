"""timm's own parts, as its train.py puts them together; the converted model is an architecture with a name."""

from timm import data, models, optim, scheduler, utils
from torch.nn.functional import cross_entropy

import blurify


@models.register_model
def blurred_mobilenet(pretrained=False, **options):
    return blurify.convert(models.create_model("mobilenetv3_small_100", pretrained=pretrained, **options))


def train(pictures, weights, out, epochs=10, batch=64, device="cuda", **options):
    model = models.create_model("blurred_mobilenet", checkpoint_path=weights, **options).to(device).train()
    loader = data.create_loader(data.create_dataset("", pictures), 224, batch, is_training=True, use_prefetcher=False)
    optimizer = optim.create_optimizer_v2(model, "adamw", lr=1e-4)
    schedule, epochs = scheduler.create_scheduler_v2(optimizer, num_epochs=epochs)
    average = utils.ModelEmaV3(model, decay=0.99)
    saver = utils.CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=out)
    for epoch in range(epochs):
        for seen, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(seen.to(device)), labels.to(device)).backward()
            optimizer.step()
            average.update(model)
        schedule.step(epoch + 1)
        saver.save_checkpoint(epoch)
    return model, average.module
