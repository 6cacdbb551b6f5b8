import json
import sys

import pytest

from benchmarks import speed


def test_a_run_that_was_stopped_goes_on_with_the_next_model(tmp_path, monkeypatch, capsys):
    out, measured = tmp_path / "speed.json", []

    def of_model(name, *others):
        if name == "vgg16" and measured.count("vgg16") == 0:
            measured.append(name)
            raise KeyboardInterrupt
        measured.append(name)
        return {"model": name, "nchw": {"blurify/published": {"ratio": 0.5, "spread": [0.4, 0.6]}}}

    monkeypatch.setattr(speed, "of_model", of_model)
    command = ["speed.py", "--models", "alexnet,vgg16,resnet18", "--parts", "nchw", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(KeyboardInterrupt):
        speed.main()
    kept = json.loads(out.read_text())
    assert [row["model"] for row in kept["models"]] == ["alexnet"] and kept["unfinished"] == ["vgg16", "resnet18"]
    assert "Stopped before: vgg16, resnet18." in speed.page(kept)
    speed.main()
    assert measured == ["alexnet", "vgg16", "vgg16", "resnet18"]
    assert [row["model"] for row in json.loads(out.read_text())["models"]] == ["alexnet", "vgg16", "resnet18"]
    speed.main()
    assert len(measured) == 4
    monkeypatch.setattr(sys, "argv", [*command, "--fresh"])
    speed.main()
    assert measured[4:] == ["alexnet", "vgg16", "resnet18"]
    monkeypatch.setattr(sys, "argv", [*command[:-3], "nchw", "--rounds", "3", "--out", str(out)])
    speed.main()  # of another command nothing is taken over
    assert measured[7:] == ["alexnet", "vgg16", "resnet18"]
    capsys.readouterr()
