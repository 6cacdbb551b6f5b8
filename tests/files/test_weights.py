import weakref

import torch
from torch import nn

from blurify.files import weights


class Old(nn.Module):
    """Keeps more than its parameters, and reads what an older version of it wrote."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.count = torch.zeros(1)
        self.seen = []
        self.register_load_state_dict_pre_hook(self._before)

    def get_extra_state(self):
        return self.count

    def set_extra_state(self, state):
        self.count = state.clone()

    @staticmethod
    def _before(module, state_dict, prefix, *args):
        module.seen.append(sorted(state_dict))


def test_modules_are_loaded_as_ever():
    torch.manual_seed(0)
    one, two = Old(), Old()
    one.count += 5
    kept = two.count
    weights.fill(two, one.state_dict(), where="w", arch="Old")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert two.seen == [sorted(one.state_dict())] and kept.item() == 0


def test_each_tensor_is_asked_for_when_its_turn_comes():
    class Counted(dict):
        alive = most = 0

        def __getitem__(self, name):
            value = super().__getitem__(name).clone()
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)
            weakref.finalize(value, Counted.gone)
            return value

        @staticmethod
        def gone():
            Counted.alive -= 1

        def values(self):
            return (self[name] for name in self)

        def items(self):
            return ((name, self[name]) for name in self)

    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(5)))
    wanted = Counted({name: value + 1 for name, value in model.state_dict().items()})
    weights.fill(model, wanted, where="w", arch="it")
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert Counted.most <= 3
