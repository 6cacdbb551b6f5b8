from blurify.spec.words import did_you_mean, nearest


def test_the_nearest_come_first():
    known = iter(["resnet50", "resnet18", "vgg16", "resnet19"])
    assert nearest("resnet1", known) == ["resnet19", "resnet18", "resnet50"]
    assert nearest("resnet18", ["resnet18", "resnet19"], count=1) == ["resnet18"]
    assert nearest("xyz", ["resnet18"]) == []


def test_what_a_message_says():
    assert did_you_mean([]) == ""
    assert did_you_mean(iter(["a", "b"])) == ": did you mean a or b?"
