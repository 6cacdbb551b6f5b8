"""The promises of the README, each where it was once broken, and once more of the same kind."""

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import blurify
from blurify import BlurifyError, VerificationError
from blurify.graph.recorder import trace


def image(size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def blur(x: torch.Tensor) -> torch.Tensor:
    """The default filter at stride 2, the slow obvious way: reflect by hand, weigh shifted copies, subsample."""
    for dim in (2, 3):
        n = x.shape[dim]
        index = torch.arange(-1, n + 2)
        index = index.abs()
        index = torch.where(index > n - 1, 2 * (n - 1) - index, index)
        y = x.index_select(dim, index)
        x = sum(w * y.narrow(dim, k, n) for k, w in enumerate((1 / 8, 3 / 8, 3 / 8, 1 / 8)))
    return x[:, :, ::2, ::2]


class WithAux(nn.Module):
    """A branch that only training takes, and another way in."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.head, self.aux = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 6, 1)

    def forward(self, x):
        x = F.relu(self.conv(F.relu(self.stem(x))))
        if self.training:
            return self.head(x), self.aux(x)
        return self.head(x)

    def features(self, x):
        y = F.relu(self.stem(x))
        return F.relu(self.conv(y))


class WithOtherWords(WithAux):
    def features(self, x):
        x = F.relu(self.stem(x))
        x = self.conv(x)
        return F.relu(x)


class TestTraining:
    def test_a_branch_of_training_reads_the_blurred_features(self):
        net = WithAux()
        converted = blurify.convert(net, example_inputs=image()).train()
        features = blur(F.relu(F.conv2d(F.relu(net.stem(image())), net.conv.weight, net.conv.bias, 1, 1)))
        for actual, layer in zip(converted(image()), (net.head, net.aux), strict=True):
            torch.testing.assert_close(actual, layer(features))

    def test_another_way_in_keeps_its_shape(self):
        net = WithAux()
        converted = blurify.convert(net, example_inputs=image())
        features = blur(F.relu(F.conv2d(F.relu(net.stem(image())), net.conv.weight, net.conv.bias, 1, 1)))
        torch.testing.assert_close(converted.features(image()), features)

    def test_another_way_in_that_is_written_otherwise(self):
        net = WithOtherWords().eval()
        converted = blurify.convert(net, example_inputs=image())
        assert converted.features(image()).shape == net.features(image()).shape
        torch.testing.assert_close(converted.head(converted.features(image())), converted(image()))

    def test_a_nonlinearity_of_training_alone(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
                self.head = nn.Conv2d(4, 5, 3)

            def forward(self, x):
                x = self.conv(F.relu(self.stem(x)))
                x = F.elu(x) if self.training else F.relu(x)
                return self.head(x)

        converted = blurify.convert(Net(), example_inputs=image())
        for training in (False, True):
            assert converted.train(training)(image()).shape == Net()(image()).shape
        assert "branches" in blurify.proof_of(converted).train


def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


class TestToolsThatSwap:
    def test_batch_norms_become_synchronous(self):
        converted = blurify.convert(resnet(), example_inputs=image(64))
        expected = converted(image(64))
        swapped = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(converted)).eval()
        torch.testing.assert_close(swapped(image(64)), expected)
        assert blurify.check(swapped)

    def test_activations_are_swapped(self):
        def swap(model):
            for name, child in model.named_children():
                if isinstance(child, nn.ReLU6):
                    setattr(model, name, nn.Hardswish())
                else:
                    swap(child)
            return model

        torch.manual_seed(0)
        net = torchvision.models.mobilenet_v2(num_classes=5).eval()
        after = swap(blurify.convert(net, example_inputs=image(64)))
        before = blurify.convert(swap(copy.deepcopy(net)), example_inputs=image(64))
        torch.testing.assert_close(after(image(64)), before(image(64)))
        assert blurify.check(after)

    @pytest.mark.parametrize("recipe", ["zhang2019", "light"])
    def test_convolutions_are_rebuilt_from_their_attributes(self, recipe):
        def rebuilt(conv):
            new = nn.Conv2d(
                conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
                conv.groups, conv.bias is not None,
            )  # fmt: skip
            new.load_state_dict(conv.state_dict())
            return new

        converted = blurify.convert(resnet(), recipe, example_inputs=image(64))
        expected = converted(image(64))
        for name, module in list(converted.named_modules()):
            if type(module) is nn.Conv2d:
                parent, _, last = name.rpartition(".")
                setattr(converted.get_submodule(parent), last, rebuilt(module))
        torch.testing.assert_close(converted(image(64)), expected)

    def test_eager_fusing(self):
        converted = blurify.convert(resnet(), example_inputs=image(64))
        expected = converted(image(64))
        layers = [f"layer{n}.{b}" for n in (1, 2, 3, 4) for b in (0, 1)]
        names = [[f"{layer}.conv{i}", f"{layer}.bn{i}"] for layer in layers for i in (1, 2)]
        fused = torch.ao.quantization.fuse_modules(converted, names)
        torch.testing.assert_close(fused(image(64)), expected, rtol=1e-3, atol=1e-4)

    def test_fusing_inside_a_sequential(self):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()
        ).eval()
        converted = blurify.convert(net, example_inputs=image())
        expected = converted(image())
        fused = torch.ao.quantization.fuse_modules(converted, [["2", "3", "4"]])
        torch.testing.assert_close(fused(image()), expected, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
    def test_fx_quantisation_keeps_every_blur(self, name):
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.manual_seed(0)
        net = torchvision.models.get_model(name, num_classes=5).train()
        for _ in range(4):  # statistics that keep features at size
            net(torch.rand(8, 3, 64, 64))
        converted = blurify.convert(net.eval(), example_inputs=image(64))
        wanted = sum(isinstance(module, blurify.BlurPool2d) for module in converted.modules())

        def quantise(model):
            prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (image(64),))
            prepared(image(64))
            return convert_fx(prepared)

        quantised, plain = quantise(converted), quantise(net)
        seen = [
            node for node in quantised.graph.nodes
            if node.op == "call_module" and isinstance(quantised.get_submodule(node.target), blurify.BlurPool2d)
        ]  # fmt: skip
        assert len(seen) == wanted
        # No further from what it was made of than the original is when it is quantised.
        lost = (plain(image(64)) - net(image(64))).norm()
        assert (quantised(image(64)) - converted(image(64))).norm() < 2 * lost

    def test_eager_quantisation(self):
        torch.manual_seed(0)
        net = torchvision.models.quantization.resnet18(quantize=False, num_classes=5).train()
        net(torch.rand(8, 3, 64, 64))

        def quantise(model):
            model = copy.deepcopy(model).eval()
            model.fuse_model()
            model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
            torch.ao.quantization.prepare(model, inplace=True)
            model(image(64))
            return torch.ao.quantization.convert(model)

        converted = blurify.convert(net.eval(), example_inputs=image(64))
        lost = (quantise(net)(image(64)) - net(image(64))).norm()
        assert (quantise(converted)(image(64)) - converted(image(64))).norm() < 2 * lost

    def test_a_fuse_that_sets_the_forward(self):
        """As YOLOv5 has it: one activation for all, a new convolution, `m.forward = m.forward_fuse`."""
        net = Detector()
        for recipe in ("zhang2019", "light"):
            converted = blurify.convert(net, recipe, example_inputs=image(64))
            expected = converted(image(64))
            fused = converted.fuse()
            torch.testing.assert_close(fused(image(64)), expected, rtol=1e-3, atol=1e-4)

    def test_a_forward_that_can_not_take_its_blurs_along(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(4, 4, 3, 2, 1)
                self.head = nn.Conv2d(4, 4, 3)

            def forward(self, x):
                return self.head(F.relu(self.conv(x)))

        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Block())
        converted = blurify.convert(net, example_inputs=image())
        with pytest.raises(BlurifyError, match="holds a blur"):
            converted[2].forward = lambda x: x

    def test_a_plan_that_is_not_in_force_any_more(self, tmp_path):
        converted = blurify.convert(resnet(), example_inputs=image(64))
        assert blurify.check(converted) and blurify.check(converted).ran == 7
        converted.layer3[0] = copy.deepcopy(resnet().layer3[0])
        found = blurify.check(converted)
        assert not found and any("layer3.0" in problem for problem in found.problems)
        with pytest.raises(BlurifyError, match="no longer in force"):
            blurify.save(converted, tmp_path / "model.pt")
        assert not list(tmp_path.iterdir())
        with pytest.raises(BlurifyError, match="converted and then changed"):
            blurify.convert(converted, "light", example_inputs=image(64))

    def test_hooks_of_the_user_see_blurred_outputs(self):
        """Also those that were there before: a blur is part of the forward."""
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()))
        shapes = []
        net[1].register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
        converted = blurify.convert(net, example_inputs=image())
        shapes.clear()
        net(image())
        converted(image())
        assert shapes[0] == shapes[1]


class ConvAct(nn.Module):
    act = nn.SiLU()

    def __init__(self, c1, c2, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 3, s, 1, bias=False)
        self.bn = nn.BatchNorm2d(c2)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(ConvAct(3, 4), ConvAct(4, 6, 2), ConvAct(6, 6), ConvAct(6, 8, 2))
        self.stride = torch.tensor([8.0, 16.0])  # as every YOLO's head has it
        self.eval()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.running_mean)

    def forward(self, x):
        kept = []
        for module in self.model:
            x = module(x)
            kept.append(x)
        return kept[-1], kept[2]

    @torch.no_grad()
    def fuse(self):
        for module in self.model.modules():
            if isinstance(module, ConvAct):
                module.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
                del module.bn
                module.forward = module.forward_fuse
        return self


class TestSameBits:
    @pytest.mark.parametrize("inplace", [False, True])
    def test_surgery_that_changes_a_weight(self, monkeypatch, inplace):
        from blurify import conversion

        real = conversion.apply_plan

        def careless(model, plan):
            real(model, plan)
            with torch.no_grad():
                model.layer1[0].conv1.weight[0, 0, 0, 0] += 1e-6

        monkeypatch.setattr(conversion, "apply_plan", careless)
        with pytest.raises(VerificationError, match=r"layer1\.0\.conv1\.weight"):
            blurify.convert(resnet(), example_inputs=image(64), inplace=inplace)

    def test_surgery_that_changes_a_buffer(self, monkeypatch):
        from blurify import conversion

        real = conversion.apply_plan

        def careless(model, plan):
            real(model, plan)
            model.bn1.running_mean += 1

        monkeypatch.setattr(conversion, "apply_plan", careless)
        with pytest.raises(VerificationError, match=r"bn1\.running_mean"):
            blurify.convert(resnet(), example_inputs=image(64), inplace=True)


class TestTwice:
    def test_another_recipe_starts_from_the_original(self):
        net = resnet()
        once = blurify.convert(net, "light", example_inputs=image(64))
        twice = blurify.convert(once, example_inputs=image(64))
        assert blurify.plan_of(twice) == blurify.plan_of(blurify.convert(net, example_inputs=image(64)))
        assert blurify.plan_of(once).recipe.name == "light"
        again = blurify.convert(twice, "light", example_inputs=image(64), inplace=True)
        assert again is twice and blurify.plan_of(again) == blurify.plan_of(once)
        torch.testing.assert_close(again(image(64)), once(image(64)))

    def test_what_can_not_be_done_anew_stays(self):
        once = blurify.convert(resnet(), example_inputs=image(64))
        with pytest.raises(BlurifyError):
            blurify.convert(once, {"skip": {"names": ["nothing"]}}, example_inputs=image(64), inplace=True)
        assert blurify.check(once) and blurify.proof_of(once) is not None

    @pytest.mark.parametrize("recipe", ["zhang2019", "light", "full"])
    def test_revert_gives_the_original_back(self, recipe):
        for net, x in ((resnet(), image(64)), (WithAux().eval(), image()), (Detector(), image(64))):
            converted = blurify.convert(net, recipe, example_inputs=x)
            back = blurify.revert(converted)
            assert blurify.plan_of(back) is None and blurify.plan_of(converted) is not None
            for (name, a), (other, b) in zip(net.named_modules(), back.named_modules(), strict=True):
                assert (name, type(a)) == (other, type(b))
                assert getattr(a, "stride", None) is getattr(b, "stride", None) or torch.equal(
                    torch.as_tensor(a.stride), torch.as_tensor(b.stride)
                )
                assert vars(a).keys() == vars(b).keys()
                assert list(a._modules) == list(b._modules)
            expected, actual = net(x), back(x)
            assert all(map(torch.equal, *((v,) if torch.is_tensor(v) else v for v in (expected, actual))))

    def test_reverted_for_the_length_of_a_block(self):
        net, x = resnet(), image(64)
        converted = blurify.convert(net, example_inputs=x)
        expected = converted(x)
        with blurify.reverted(converted) as original:
            assert original is converted and torch.equal(original(x), net(x))
        assert torch.equal(converted(x), expected) and blurify.proof_of(converted) is not None
        with pytest.raises(BlurifyError, match="not converted"):
            blurify.revert(net)


class TestPatterns:
    def test_a_pattern_without_a_site(self):
        with pytest.raises(BlurifyError, match=r"'layr2\.\*'.*nearest site is 'layer2\.0\.conv1'"):
            blurify.inspect(resnet(), image(64), {"skip": {"names": ["layer3.*", "layr2.*"]}})

    def test_a_model_without_sites(self):
        with pytest.raises(BlurifyError, match="no sites at all"):
            blurify.convert(nn.Conv2d(3, 4, 3), {"skip": {"names": ["a"]}}, example_inputs=image())


def test_threads_leave_the_warnings_filter_as_it_was():
    before = list(warnings.filters)
    errors = []

    def work():
        try:
            for _ in range(4):
                blurify.convert(WithAux(), example_inputs=image())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", UserWarning, stacklevel=1)


class TestWrapped:
    @pytest.mark.parametrize(
        "wrap",
        [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile],
        ids=["parallel", "swa", "compiled"],
    )
    def test_wrappers_say_what_to_convert(self, wrap):
        wrapped = wrap(resnet())
        inner = "_orig_mod" if hasattr(wrapped, "_orig_mod") else "module"  # other libraries wrap torch.compile
        for verb in (blurify.convert, blurify.inspect):
            with pytest.raises(BlurifyError, match=rf"convert model\.{inner}, then"):
                verb(wrapped, example_inputs=image(64))
        assert blurify.convert(getattr(wrapped, inner), example_inputs=image(64)) is not None

    def test_float_helpers_of_quantizable_models_are_no_quantised_layers(self):
        net = torchvision.models.quantization.resnet18(quantize=False).eval()
        assert blurify.convert(net, example_inputs=image(64)) is not None

    def test_scripting_says_what_to_use_instead(self):
        converted = blurify.convert(resnet(), example_inputs=image(64))
        with pytest.raises(BlurifyError, match=r"torch\.jit\.trace") as caught:
            torch.jit.script(converted)
        assert "\n" not in str(caught.value)

    def test_another_default_device(self):
        net = resnet()
        torch.set_default_device("meta")
        try:
            converted = blurify.convert(net, example_inputs=image(64))
        finally:
            torch.set_default_device(None)
        assert {b.device.type for b in converted.buffers()} == {"cpu"}
        torch.testing.assert_close(converted(image(64)), blurify.convert(net, example_inputs=image(64))(image(64)))

    def test_another_default_dtype(self):
        net = resnet()
        x = image(64)
        expected = blurify.convert(net, example_inputs=x)(x)
        torch.set_default_dtype(torch.float64)
        try:
            converted = blurify.convert(net, example_inputs=x)
            assert converted(x).dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(converted(x), expected)

    def test_filled_on_the_meta_device(self):
        """`assign=True` gives a model its weights, and nothing of what is not in the state_dict."""
        net = resnet()
        expected = blurify.convert(net, example_inputs=image(64))
        with torch.device("meta"):
            empty = torchvision.models.resnet18(num_classes=5).eval()
        converted = blurify.convert(empty, example_inputs=image(64), verify=False)
        converted.load_state_dict(net.state_dict(), assign=True)
        torch.testing.assert_close(converted(image(64)), expected(image(64)))


class TestProof:
    def test_weights_that_are_no_numbers(self):
        net = resnet()
        net.layer1[0].conv1.weight.data.fill_(float("nan"))
        with pytest.raises(VerificationError, match="no finite number"):
            blurify.convert(net, example_inputs=image(64))

    def test_infinite_weights_at_the_end(self):
        net = resnet()
        net.fc.weight.data.fill_(float("inf"))
        with pytest.raises(VerificationError, match="no finite number"):
            blurify.convert(net, example_inputs=image(64))

    def test_complex_numbers(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(2, 4, 3, padding=1, dtype=torch.complex64)
                self.conv = nn.Conv2d(4, 4, 3, 2, 1, dtype=torch.complex64)
                self.head = nn.Conv2d(4, 4, 3, dtype=torch.complex64)

            def forward(self, x):
                return self.head(torch.sigmoid(self.conv(torch.sigmoid(self.stem(x)))))

        x = torch.complex(image(channels=2), image(channels=2).flip(-1))
        converted = blurify.convert(Net(), example_inputs=x)
        assert len(blurify.plan_of(converted).converted) == 1
        assert blurify.proof_of(converted).identity_error < 1e-5

    def test_an_attribute_called_stride(self):
        assert blurify.proof_of(blurify.convert(Detector(), example_inputs=image(64))).sites_compared == 2

    @pytest.mark.parametrize("kind", ["max", "avg", "conv", "slice"])
    def test_views_of_what_was_pooled(self, kind):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)

            def forward(self, x):
                x = F.relu(self.stem(x))
                if kind == "max":
                    x = F.max_pool2d(x, 2)
                elif kind == "avg":
                    x = F.avg_pool2d(x, 2)
                elif kind == "conv":
                    x = F.relu(self.conv(x))
                else:
                    x = x[:, :, ::2, ::2].contiguous()
                return x.view(x.size(0), -1)

        for size in (4, 1):
            converted = blurify.convert(Net(), filter_size=size, example_inputs=image())
            assert converted(image()).shape == Net()(image()).shape

    def test_nothing_to_compare(self):
        lines = blurify.proof_of(blurify.convert(nn.Conv2d(3, 4, 3), example_inputs=image())).lines()
        assert "nothing to compare" in lines[0] and "0 outputs" not in lines[0]

    def test_it_says_what_it_compared(self):
        proof = blurify.proof_of(blurify.convert(resnet(), example_inputs=image(64)))
        assert (proof.sites_compared, proof.sites_shown, proof.unshown) == (7, 7, ())
        assert "7 of 7 sites" in proof.lines()[0]

    def test_a_parent_that_pads_by_its_convolutions_stride(self):
        """As transformers' MobileNets do."""

        class Layer(nn.Module):
            def __init__(self, c1, c2, stride):
                super().__init__()
                self.convolution = nn.Conv2d(c1, c2, 3, stride)

            def forward(self, x):
                return F.relu(self.convolution(pad_same(x, self.convolution)))

        torch.manual_seed(0)
        net = nn.Sequential(Layer(3, 4, 1), Layer(4, 4, 2), Layer(4, 4, 2))
        for size in (32, 33):
            identity = blurify.convert(net, filter_size=1, example_inputs=image())
            torch.testing.assert_close(identity(image(size)), net(image(size)))
        converted = blurify.convert(net, example_inputs=image())
        assert blurify.plan_of(converted).count("rule") == {"after-activation": 2}

    def test_a_container_that_reads_a_stride_through_a_list(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)])

            def forward(self, x):
                for conv in self.convs:
                    total = max((conv.stride[0] + 2 - conv.stride[0]) * conv.stride[0], 1)
                    x = F.relu(conv(F.pad(x, (total // 2,) * 4)))
                return x

        torch.manual_seed(0)
        identity = blurify.convert(Net(), filter_size=1, example_inputs=image())
        net = Net()
        net.load_state_dict(identity.state_dict())
        torch.testing.assert_close(identity(image()), net(image()))

    def test_a_blur_off_by_one_sample_is_refused_at_any_site(self, monkeypatch):
        from blurify.nn.blurpool import BlurPool

        real = BlurPool.forward

        def shifted(self, x, output_size=None, *, extend=None):
            if self.filters_nothing:
                x = torch.roll(x, 1, -1)
            return real(self, x, output_size, extend=extend)

        monkeypatch.setattr(BlurPool, "forward", shifted)
        for net in (resnet(), torchvision.models.mobilenet_v2(), torchvision.models.densenet121(), WithAux()):
            with pytest.raises(VerificationError):
                blurify.convert(net.eval(), "light", example_inputs=image(64))

    def test_small_weights_do_not_hide_a_mistake(self, monkeypatch):
        """Fresh weights of standard deviation 0.02 and biases of zero, as transformers has them."""
        from blurify.nn.blurpool import BlurPool

        net = resnet()
        for name, parameter in net.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.02)
        proof = blurify.proof_of(blurify.convert(net, example_inputs=image(64)))
        assert proof.unshown == ()
        real = BlurPool.forward
        monkeypatch.setattr(
            BlurPool,
            "forward",
            lambda self, x, size=None, *, extend=None: real(
                self, torch.roll(x, 1, -2) if self.filters_nothing else x, size, extend=extend
            ),
        )
        with pytest.raises(VerificationError):
            blurify.convert(net, example_inputs=image(64))

    def test_a_forward_that_hard_codes_float32(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)

            def forward(self, x):
                return F.relu(self.conv(F.relu(self.stem(x.to(torch.float32))))) + torch.zeros(1, dtype=torch.float32)

        assert blurify.proof_of(blurify.convert(Net(), example_inputs=image())).dtype == "float32"


def pad_same(x, conv):
    """TensorFlow's padding, whose amount depends on the stride."""
    pads = []
    for n, s, k in zip(x.shape[:1:-1], conv.stride[::-1], conv.kernel_size[::-1], strict=True):
        total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class TestWhatWasTracedOnly:
    @pytest.mark.parametrize("functional", [False, True])
    def test_a_pool_that_is_global_at_one_size(self, functional):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(8)

            def forward(self, x):
                x = F.relu(self.stem(x))
                return F.avg_pool2d(x, 8) if functional else self.pool(x)

        torch.manual_seed(0)
        net = Net().eval()
        converted = blurify.convert(net, example_inputs=image(8))
        site = blurify.plan_of(converted).sites[0]
        assert (site.action, site.rule) == ("skip", "global-pool")
        assert torch.equal(converted(image(8)), net(image(8)))
        larger = blurify.convert(net, example_inputs=image(32))
        assert blurify.plan_of(larger).sites[0].action == "blur"
        torch.testing.assert_close(converted(image(32)), larger(image(32)))
        assert not torch.equal(converted(image(32)), net(image(32)))

    def test_a_pool_that_is_global_at_every_size(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 4, 3, padding=1)

            def forward(self, x):
                x = F.relu(self.stem(x))
                return F.avg_pool2d(x, x.shape[2:])

        (site,) = blurify.inspect(Net(), image()).sites
        assert site.rule == "global-pool" and not site.edits

    def test_masks_are_no_signals(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 4, 3, padding=1)

            def forward(self, x, mask):
                x = F.relu(self.stem(x))
                mask = mask.type_as(x)[:, None]
                return F.max_pool2d(x, 2), -F.max_pool2d(-mask, 2)

        mask = (torch.arange(32 * 32).view(1, 32, 32).expand(2, -1, -1) % 3 > 0).long()
        for given in (mask, mask.float(), mask.bool()):
            converted = blurify.convert(Net(), example_inputs=(image(), given))
            assert [site.action for site in blurify.plan_of(converted).sites] == ["blur", "skip"]
            assert set(converted(image(), given)[1].unique().tolist()) <= {0.0, 1.0}

    def test_a_mask_made_in_the_forward(self):
        class Net(nn.Module):
            def forward(self, x):
                mask = torch.ones_like(x)
                return F.max_pool2d(x, 2), F.avg_pool2d(mask, 2)

        sites = blurify.inspect(Net(), image()).sites
        assert [(site.action, site.rule) for site in sites] == [("blur", "maxpool"), ("skip", "whole-numbers")]

    @pytest.mark.parametrize(
        ("kernel", "filters"),
        [
            ([[0, 1, 0], [1, -4, 1], [0, 1, 0]], False),  # Laplace
            ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], False),  # a delta
            ([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], False),  # sharpening
            ([[1, 2, 1], [2, 4, 2], [1, 2, 1]], True),
            ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], True),
        ],
    )
    @pytest.mark.parametrize("strided", [True, False])
    def test_a_fixed_kernel_is_judged_by_its_response(self, kernel, filters, strided):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
                weight = torch.tensor(kernel, dtype=torch.float32)
                self.register_buffer("kernel", (weight / weight.abs().sum()).expand(4, 1, 3, 3))

            def forward(self, x):
                x = F.relu(self.stem(x))
                if strided:
                    return F.relu(F.conv2d(x, self.kernel, None, 2, 1, 1, 4))
                return F.relu(self.conv(F.conv2d(x, self.kernel, None, 1, 1, 1, 4)))

        site = blurify.inspect(Net(), image()).sites[0]
        assert (site.rule == "already-filtered") == filters

    def test_wide_average_pools_keep_their_smoothing(self):
        """A pool of 75 samples at stride 15, as EEG networks have it: noise stays as quiet as it was."""
        noise = torch.randn(1, 8, 1, 3000, generator=torch.Generator().manual_seed(0))

        class Net(nn.Module):
            def __init__(self, *size):
                super().__init__()
                self.stem, self.pool = nn.Conv2d(8, 8, 1), nn.AvgPool2d(*size)

            def forward(self, x):
                return self.pool(self.stem(x))

        for size in (((1, 75), (1, 15)), ((1, 7), (1, 2))):
            net = Net(*size)
            converted = blurify.convert(net, example_inputs=noise)
            assert converted(noise).shape == net(noise).shape
            assert converted(noise).var() <= 1.01 * net(noise).var()
        assert blurify.plan_of(blurify.convert(Net((1, 2)), example_inputs=noise)).sites[0].edits[0].kernel_size is None


def test_multiply_adds_are_torchs_own():
    net = torchvision.models.vit_b_16().eval()
    assert blurify.inspect(net, torch.zeros(1, 3, 224, 224)).macs == pytest.approx(17.56e9, rel=0.01)
    lstm = nn.LSTM(10, 20, 2, bidirectional=True)
    seen = trace(lstm, ((torch.zeros(7, 3, 10),), {}), count=True)
    assert seen.macs == 7 * 3 * 2 * (4 * 20 * (10 + 20) + 4 * 20 * (40 + 20))


def test_importing_the_layers_loads_no_planning():
    import subprocess
    import sys

    code = (
        "import sys, blurify.nn; "
        "wrong = [name for name in sys.modules if name.startswith(('blurify.graph', 'blurify.planning', "
        "'blurify.surgery', 'blurify.proof', 'blurify.spec.recipes', 'blurify.spec.plan'))]; assert not wrong, wrong"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_backward_of_a_blur_is_not_cast_by_autocast():
    """Autograd's own backward is not: gradients that autocast rounded to bfloat16 would differ by a part in 256."""
    layer = blurify.BlurPool2d(2)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    weights = torch.randn(2, 3, 8, 8)
    (layer(x) * weights).sum().backward()
    expected, x.grad = x.grad, None
    out = (layer(x) * weights).sum()
    with torch.autocast("cpu", torch.bfloat16):
        out.backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, expected, rtol=1e-6, atol=1e-7)


def test_signals_of_different_sizes_do_not_meet_in_one_blur():
    """Two dense maps of one stride but different sizes (one broadcast over the other) have no common blur point."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.a, self.b = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
            self.head = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.head(F.relu(self.a(x) + self.b(x[:, :, :2, :2])))

    torch.manual_seed(0)
    net = Net()
    identity = blurify.convert(net, filter_size=1, example_inputs=image())
    torch.testing.assert_close(identity(image()), net(image()))
    converted = blurify.convert(net, example_inputs=image())
    assert converted(image()).shape == net(image()).shape


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)


class ReturnsBefore(Stem):
    def forward(self, x, raw=False):
        x = self.conv(F.relu(self.stem(x)))
        if raw:
            return x
        return F.relu(x)


class CallsIntoItsBlock(nn.Module):
    class Block(Stem):
        def forward(self, x):
            return F.relu(self.conv(F.relu(self.stem(x))))

    def __init__(self):
        super().__init__()
        self.block = self.Block()

    def forward(self, x, raw=False):
        return self.features(x) if raw else self.block(x)

    def features(self, x):
        return torch.tanh(self.block.conv(F.relu(self.block.stem(x))))


class ByAnotherName(Stem):
    def forward(self, x, raw=False):
        return self.features(x) if raw else F.relu(self.conv(F.relu(self.stem(x))))

    def features(self, x):
        layer = self.conv
        return layer(F.relu(self.stem(x)))


class ByNumber(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)
        )

    def forward(self, x, raw=False):
        return self.features(x) if raw else self.net(x)

    def features(self, x):
        for number in range(len(self.net)):
            x = self.net[number](x)
        return x


@pytest.mark.parametrize("cls", [ReturnsBefore, CallsIntoItsBlock, ByAnotherName, ByNumber])
def test_other_branches_and_ways_in(cls):
    """What no trace went through: with the one-tap filter it computes the original too."""
    net = cls().eval()
    identity = blurify.convert(net, filter_size=1, example_inputs=image())
    converted = blurify.convert(net, example_inputs=image())
    assert blurify.plan_of(converted).converted
    for raw in (False, True):
        torch.testing.assert_close(identity(image(), raw), net(image(), raw))
        assert converted(image(), raw).shape == net(image(), raw).shape


def test_a_slice_of_another_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x, step=2):
            return F.relu(self.stem(x))[:, :, ::step, ::step]

    net = Net()
    converted = blurify.convert(net, example_inputs=image())
    assert blurify.plan_of(converted).converted
    for step in (1, 2, 4):
        assert converted(image(), step).shape == net(image(), step).shape


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 1 + i % 2, 1) for i in range(4))

    def forward(self, x, stop=None):
        for number, conv in enumerate(self.convs):
            y = conv(x)
            if number == stop:
                raise RuntimeError("stopped")
            x = F.relu(y)
        return x


def test_a_loop_in_threads_and_after_an_error():
    """What a loop owes belongs to one run of the forward."""
    converted = blurify.convert(Loop(), example_inputs=image())
    assert blurify.plan_of(converted).count("rule") == {"after-activation": 2}
    expected = converted(image())
    with pytest.raises(RuntimeError, match="stopped"):
        converted(image(), 1)
    torch.testing.assert_close(converted(image()), expected)
    wrong = []

    def work():
        for _ in range(20):
            if not torch.equal(converted(image()), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class AnotherWay(Stem):
    """Ways that depend on what the forward is given: its size, a flag, targets."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, raw=False):
        x = self.conv(F.relu(self.stem(x)))
        if self.kind == "size":
            return self.by_size(x)
        if raw:
            x = x + x.mean((2, 3), keepdim=True) * torch.linspace(0, 1, x.shape[-1])
        return F.relu(x)

    def by_size(self, x):
        if x.shape[-1] > 20:
            return F.elu(x)
        return F.relu(x)


class SizeBranch(Stem):
    def forward(self, x, raw=False):
        x = self.conv(F.relu(self.stem(x)))
        if raw or x.shape[-1] > 20:
            x = F.elu(x)
        else:
            x = F.relu(x)
        return x


class LengthsToo(Stem):
    def forward(self, x, raw=False):
        y = F.relu(self.conv(F.relu(self.stem(x))))
        return y * ((x.shape[-1] - 1) // self.conv.stride[0] + 1) if raw else y


@pytest.mark.parametrize("make", [SizeBranch, LengthsToo, lambda: AnotherWay("flag")])
@pytest.mark.parametrize("size", [32, 47])
def test_ways_that_depend_on_what_is_given(make, size):
    net = make().eval()
    identity = blurify.convert(net, filter_size=1, example_inputs=image())
    converted = blurify.convert(net, example_inputs=image())
    assert blurify.plan_of(converted).converted
    for raw in (False, True):
        torch.testing.assert_close(identity(image(size), raw), net(image(size), raw))
        assert converted(image(size), raw).shape == net(image(size), raw).shape


def test_pools_given_as_partials():
    import functools

    class Net(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.stem, self.pool = nn.Conv2d(3, 4, 3, padding=1), functools.partial(F.max_pool2d, **options)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.pool(x) if "kernel_size" in self.pool.keywords else self.pool(x, 2)

    for options in ({"kernel_size": 2}, {"ceil_mode": True}):
        net = Net(**options)
        identity = blurify.convert(net, filter_size=1, example_inputs=image())
        assert blurify.plan_of(identity).converted
        for size in (32, 33):
            torch.testing.assert_close(identity(image(size)), net(image(size)))


@pytest.mark.parametrize("mutant", ["gain", "shift", "twice", "nothing", "zeros"])
def test_filters_that_are_wrong_are_refused(monkeypatch, mutant):
    """The one-tap filter says nothing of the filter that is put in."""
    from blurify.nn.blurpool import BlurPool

    real = BlurPool._blur

    def wrong(self, x, extend):
        if self.filters_nothing:
            return real(self, x, extend)
        if mutant == "shift":
            return real(self, torch.roll(x, 1, -1), extend)
        if mutant == "nothing":
            return x[:, :, :: self.stride[0], :: self.stride[1]]
        y = real(self, x, extend)
        return {"gain": y * 1.1, "zeros": y * 0, "twice": F.avg_pool2d(y, 3, 1, 1)}[mutant]

    monkeypatch.setattr(BlurPool, "_blur", wrong)
    with pytest.raises(VerificationError, match="does not compute its filter"):
        blurify.convert(resnet(), example_inputs=image(64))


def test_in_place_it_is_the_model_itself_that_is_checked(monkeypatch):
    from blurify import conversion

    real, calls = conversion.apply_plan, []

    def second_time_careless(model, plan):
        real(model, plan)
        calls.append(1)
        if len(calls) == 2:
            model.maxpool.blurpool = blurify.BlurPool2d(1)

    monkeypatch.setattr(conversion, "apply_plan", second_time_careless)
    with pytest.raises(VerificationError, match="not carried out as planned"):
        blurify.convert(resnet(), example_inputs=image(64), inplace=True)


def test_a_forward_wrapped_on_the_instance_keeps_its_blur():
    """The usual way to patch a module: `old = m.forward; m.forward = lambda x: old(x)`."""

    class Act(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 4, 3, 2, 1), torch.nn.functional.relu

        def forward(self, x):
            return self.run(x)

        def forward_other(self, x):
            return torch.relu(self.conv(x) * 1.0)

        def run(self, x):
            return self.act(self.conv(x))

    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), Act()).eval()
    converted = blurify.convert(net, example_inputs=image())
    expected = converted(image())
    module = converted[2]
    old = module.forward
    try:
        module.forward = lambda x: old(x)
    except BlurifyError:
        return  # refused, which is as good
    torch.testing.assert_close(converted(image()), expected)


@pytest.mark.parametrize("harm", ["kernel", "stride", "groups", "blur"])
def test_check_sees_filters_that_were_changed(harm):
    converted = blurify.convert(resnet(), example_inputs=image(64))
    assert blurify.check(converted)
    pool = converted.maxpool
    if harm == "kernel":
        pool.blurpool.kernel0.zero_()
    elif harm == "stride":
        pool.stride = 4
    elif harm == "groups":
        pool.blurpool._groups = []
    else:
        pool.blurpool = blurify.BlurPool2d(2, 3)
    assert not blurify.check(converted)
