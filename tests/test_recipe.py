"""Recipes: the bundled ones, overrides with types, refusals with close matches, and what the hash depends on."""

import os

import pytest

from nbsnn.errors import ConfigError, unknown
from nbsnn.models import list_models
from nbsnn.pipeline import train
from nbsnn.recipe import OptimSpec, Phase, QuantSpec, recipe_from_dict
from nbsnn.recipes import list_recipes, load_recipe
from nbsnn.tensorfile import read_header
from nbsnn.zoo import PREFIX, list_zoo, locate

NETS = [f"cifar10/{n}" for n in ("alexnet", "resnet110", "resnet18", "resnet20", "resnet32", "resnet44", "resnet56", "vgg11")]


def refusal(*overrides, name="cifar10/resnet20"):
    with pytest.raises(ConfigError) as caught:
        load_recipe(name, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_cifar10_net_has_a_recipe_and_a_fast_variant():
    assert {*NETS, *(f"{n}:{v}" for n in NETS for v in ("fast", "paper")), "digits/resnet20"} <= set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_every_bundled_recipe_loads(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model.name in list_models()
    assert next(iter(recipe.phase)) == ("4" if name.startswith("imagenet") else "32")  # TorchVision has the float ones
    assert [recipe.spec(int(bits)).act_bits for bits in recipe.phase] == [int(bits) for bits in recipe.phase]
    assert recipe_from_dict(recipe.to_dict()) == recipe


def test_the_published_schedule():
    recipe = load_recipe("cifar10/resnet20")
    assert list(recipe.phase) == ["32", "4", "3", "2"]
    assert {phase.epochs for phase in recipe.phase.values()} == {300}
    assert (recipe.phase["32"].lr, recipe.phase["2"]) == (0.1, Phase(300, 0.04, 3e-5))
    assert recipe.optim == OptimSpec()


def test_the_paper_variant_is_the_published_schedule():
    assert all(load_recipe(f"{name}:paper").hash == load_recipe(name).hash for name in NETS)


def test_a_variant_changes_only_what_it_names():
    fast, full = load_recipe("cifar10/vgg11:fast"), load_recipe("cifar10/vgg11")
    assert (fast.model, fast.data, fast.quant) == (full.model, full.data, full.quant)
    assert fast.phase["4"].epochs < full.phase["4"].epochs
    assert fast.phase["4"].lr == full.phase["4"].lr
    assert fast.optim.schedule == "cosine"


def test_resnet18_keeps_all_weights_in_float():
    assert load_recipe("cifar10/resnet18").spec(3) == QuantSpec(32, 3, 32, norms="recalibrate")


def test_the_hash_depends_on_what_decides_the_result_alone():
    base = load_recipe("cifar10/resnet20")
    same = ["data.root=/elsewhere", "data.download=true"]
    assert load_recipe("cifar10/resnet20", same).hash == base.hash
    changes = [
        "phase.2.lr=0.041",
        "seed=1",
        "data.batch_size=64",
        "optim.lr_gamma=0.2",
        "data.padding=mirror",
        "phase.4.distill=0.5",
        "phase.4.refit_scales=true",
        "model.num_classes=9",
        "quant.edge_range=max",
    ]
    assert len({base.hash, *(load_recipe("cifar10/resnet20", [c]).hash for c in changes)}) == len(changes) + 1
    assert len(base.hash) == 12
    assert base.hash == load_recipe("cifar10/resnet20").hash


def test_hashes_of_earlier_versions_stand():
    """As docs/results.md has them; what came later counts only where it is used."""
    cut = ["phase.32.epochs=20", "phase.4.epochs=6", "phase.3.epochs=6", "phase.2.epochs=4", "phase.all.distill=0"]
    cut += ["optim.recalibrate_batches=0", "phase.2.refit_scales=false", "phase.2.lr=0.04"]
    recipe = load_recipe("cifar10/resnet20:fast", cut)
    assert recipe.hash == "9579b6401c31"
    assert str(recipe.phase["4"]) == "Phase(epochs=6, lr=0.04, weight_decay=0.0001)"
    assert load_recipe("cifar10/resnet20:fast", [*cut, "optim.temperature=2"]).hash == recipe.hash
    taught = [load_recipe("cifar10/resnet20:fast", [*cut, "phase.2.distill=0.7", f"optim.temperature={t}"]) for t in (4, 2)]
    assert len({recipe.hash, *(r.hash for r in taught)}) == 3
    assert {r.until(3).hash for r in taught} == {recipe.until(3).hash}


FORMER = {
    "optim.decay=0.3": "optim.lr_gamma=0.3",
    "optim.rate_batch=64": "optim.lr_batch_size=64",
    "optim.norm_batches=2": "optim.recalibrate_batches=2",
    "phase.32.average=0.9": "phase.32.ema_decay=0.9",
    " phase.all.average = 0.5": "phase.all.ema_decay=0.5",
}


@pytest.mark.parametrize(("former", "current"), FORMER.items())
def test_a_setting_may_go_by_its_former_name(former, current):
    recipe = load_recipe("cifar10/resnet20:fast", [former])
    assert recipe == load_recipe("cifar10/resnet20:fast", [current])
    assert recipe != load_recipe("cifar10/resnet20:fast")
    assert recipe == load_recipe("cifar10/resnet20:fast", [current.partition("=")[0] + "=0.1", former])


def test_settings_by_former_names_have_the_hash_that_they_had():
    recipe = load_recipe("cifar10/resnet20:fast", [former for former in FORMER if former.startswith(("optim", "phase"))])
    assert recipe.hash == "66b86ca3aec7"
    assert str(recipe.phase["32"]) == "Phase(epochs=24, lr=0.2, weight_decay=0.0005, average=0.9)"


def test_files_and_headers_may_use_former_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "cifar10/resnet20"\n[optim]\ndecay = 0.3\nnorm_batches = 2\n[averaged.phase.2]\naverage = 0.9\n')
    recipe = load_recipe(f"{path}:averaged", ["optim.lr_gamma=0.2"])
    assert (recipe.optim.lr_gamma, recipe.optim.recalibrate_batches, recipe.phase["2"].ema_decay) == (0.2, 2, 0.9)
    table = recipe.to_dict()
    table["optim"]["norm_batches"] = table["optim"].pop("recalibrate_batches")
    for phase in table["phase"].values():
        phase["average"] = phase.pop("ema_decay")
    assert recipe_from_dict(table) == recipe


def test_a_setting_under_both_names_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "cifar10/resnet20"\n[optim]\ndecay = 0.3\nlr_gamma = 0.2\n')
    assert refusal(name=str(path)) == "optim.decay is the former name of optim.lr_gamma; give one of the two"


@pytest.mark.parametrize("name", list_zoo())
def test_recipes_of_the_bundled_networks_keep_their_hashes(name):
    header = read_header(locate(PREFIX + name))
    assert recipe_from_dict(header["recipe"]).hash == header["recipe_hash"]


def test_the_hash_depends_on_the_order_of_the_phases():
    table = load_recipe("digits/resnet20").to_dict()
    other = {**table, "phase": dict(reversed(table["phase"].items()))}
    assert recipe_from_dict(other).hash != recipe_from_dict(table).hash


def test_overrides_take_the_type_of_their_key():
    overrides = [
        "data.batch_size=64", "phase.2.lr=3e-3", "optim.nesterov=true", "data.augment=0", "optim.milestones=0.3,0.6,0.9",
        "quant.edge_range=max", "data.root=/data=x", "optim.schedule=cosine", "seed=7",
    ]  # fmt: skip
    recipe = load_recipe("cifar10/resnet20", overrides)
    assert (recipe.data.batch_size, recipe.phase["2"].lr, recipe.optim.nesterov, recipe.data.augment) == (64, 3e-3, True, False)
    assert recipe.optim.milestones == (0.3, 0.6, 0.9)
    assert (recipe.quant.edge_range, recipe.data.root, recipe.optim.schedule, recipe.seed) == ("max", "/data=x", "cosine", 7)


def test_phase_all_reaches_every_phase():
    recipe = load_recipe("cifar10/resnet20", ["phase.all.epochs=2", "phase.3.epochs=5"])
    assert {bits: phase.epochs for bits, phase in recipe.phase.items()} == {"32": 2, "4": 2, "3": 5, "2": 2}


def test_phase_all_without_any_phase_is_an_error_of_one_line(tmp_path):
    (tmp_path / "a.toml").write_text('[model]\nname = "cifar10/resnet20"\n')
    assert "phase" in refusal("phase.all.epochs=2", name=str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batchsize=3", "unknown key 'data.batchsize'; did you mean data.batch_size"),
        ("phase.2.epoch=3", "unknown key 'phase.2.epoch'; did you mean phase.2.epochs"),
        ("optm.decay=3", "unknown key 'optm'; did you mean optim"),
        ("data.batch_size=abc", "data.batch_size=abc: must be an integer"),
        ("data.batch_size=1.5", "data.batch_size=1.5: must be an integer"),
        ("data.batch_size=1", "data.batch_size=1: must be an integer from 2 (batch norm)"),
        ("optim.nesterov=maybe", "optim.nesterov=maybe: must be true or false"),
        ("optim.schedule=linear", "optim.schedule=linear: must be step or cosine"),
        ("phase.2.lr=-1", "phase.2.lr=-1.0: must be a positive learning rate"),
        ("phase.2.lr=nan", "phase.2.lr=nan: must be a finite number"),
        ("phase.2.lr=inf", "phase.2.lr=inf: must be a finite number"),
        ("phase.2.weight_decay=inf", "phase.2.weight_decay=inf: must be a finite number"),
        ("optim.lr_gamma=-1", "optim.lr_gamma=-1.0: must be a factor in (0, 1]"),
        ("optim.threshold_lr=-1", "optim.threshold_lr=-1.0: must be 0 (frozen) or a positive factor"),
        ("optim.scale_lr=inf", "optim.scale_lr=inf: must be a finite number"),
        ("optim.clip_norm=inf", "optim.clip_norm=inf: must be a finite number"),
        ("phase.2.epochs=0", "phase.2.epochs=0: must be an integer from 1"),
        ("optim.momentum=1", "optim.momentum=1.0: must be a number in [0, 1)"),
        ("optim.milestones=0.5,1.5", "optim.milestones=(0.5, 1.5): must be fractions in (0, 1)"),
        ("phase.7.epochs=3", "phase.7: choose one of 2, 3, 4, 5, 32 bits (32 is float)"),
        ("phase.two.epochs=3", "phase.two: choose one of 2, 3, 4, 5, 32 bits (32 is float)"),
        ("quant.edge_bits=7", "quant.edge_bits=7: must be 8, or 32 (float)"),
        ("quant.edge_bits=7.5", "quant.edge_bits=7.5: must be an integer"),
        ("phase.2=3", "phase.2=3: must be a table of epochs, lr, weight_decay"),
        ("seed", "seed: write key=value, such as data.batch_size=64"),
        ("name.first=x", "name.first=x: name has no keys of its own"),
        ("seed=-1", "seed=-1: must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(override, message):
    assert refusal(override).startswith(message)


def test_names_from_a_file_are_printable_in_messages():
    assert "\n" not in unknown("key", "phase.a\nb.None", ["phase.a\nb.lr", "phase.a\nb.epochs"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10/resnet21", "unknown recipe 'cifar10/resnet21'; did you mean cifar10/resnet"),
        ("cifar10/resnet20:quick", "unknown variant of cifar10/resnet20 'quick'; known: fast, paper"),
        ("no/such.toml", "no/such.toml: no such file; for the bundled recipes see nbsnn recipes"),
    ],
)
def test_an_unknown_recipe_or_variant_comes_with_close_matches(name, message):
    assert refusal(name=name).startswith(message)


def test_a_file_may_extend_a_bundled_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "cifar10/resnet20"\n[phase.2]\nepochs = 3\n[quick.phase.4]\nepochs = 1\n')
    assert load_recipe(str(path)).phase["2"] == Phase(3, 0.04, 3e-5)
    assert load_recipe(f"{path}:quick").phase["4"].epochs == 1
    path.write_text("extends = \n")
    assert refusal(name=str(path)).startswith(f"{path}: not valid TOML")
    path.write_text("[phase.2]\nepochs = 3\n")
    assert refusal(name=str(path)) == "recipe: missing model"
    path.write_text('extends = "cifar10/resnet20"\n[quant]\nedge_bits = 7.5\n')
    assert refusal(name=str(path)) == "quant.edge_bits=7.5: must be an integer"


@pytest.mark.parametrize("bits", [7.5, "4", 0, 9, True])
def test_bits_must_be_whole_and_known(bits):
    with pytest.raises(ConfigError, match=f"^act_bits={bits!r}: choose one of 1, 2, 3, 4, 5, 6, 7, 8, 32"):
        QuantSpec(act_bits=bits)


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match=r"^optim.nesterov=True: must be false where optim.momentum is 0$"):
        load_recipe("cifar10/resnet20", ["optim.nesterov=true", "optim.momentum=0"])


# ------------------------------------------------------------------------------------- files that are no recipes (case 24)

BASE = 'extends = "digits/resnet20"\n'
FILES = {
    "latin-1": ('[model]\nname = "caf\xe9"\n'.encode("latin-1"), "not UTF-8 text; save the file as UTF-8"),
    "utf-16": (BASE.encode("utf-16"), "not UTF-8 text; save the file as UTF-8"),
    "itself": (b'extends = "file.toml"', 'extends itself; take one "extends" out'),
    "itself by another name": (b'extends = "./sub/../file.toml"', 'extends itself; take one "extends" out'),
    "a cycle": (b'extends = "other.toml"', 'extends itself; take one "extends" out'),
    "a number": (b"extends = 3", "extends=3: must be the name of a recipe, or a TOML file"),
    "no such base": (b'extends = "cifar10/_publishd"', "did you mean cifar10/_published"),
    "deep lists": (b"a = " + b"[" * 100_000, "nested too deeply"),
    "deep tables": (BASE.encode() + b".".join([b"a"] * 3000) + b" = 1", "unknown key 'a'"),
    "6000 digits": (BASE.encode() + b"seed = " + b"9" * 6000, "not valid TOML"),
    "24000 bits": (BASE.encode() + b"seed = 0x" + b"f" * 6000, "seed=(int, too large to print): must be an integer"),
    "400 digits as a rate": (BASE.encode() + b"[phase.2]\nlr = " + b"9" * 400, "must be a finite number"),
    "a date": (BASE.encode() + b"[phase.2]\nlr = 2020-01-01", "must be a finite number"),
    "NUL": (BASE.encode() + b'[data]\nroot = "a\\u0000b"', "must be text without NUL"),
    "phase.02": (BASE.encode() + b"[phase.02]\nepochs = 1", "phase.02: choose one of 2, 3, 4, 5, 32 bits (32 is float)"),
    "no table of phases": (BASE.encode() + b"phase = 3", "phase=3: must be a table"),
    "a misspelt table": (BASE.encode() + b"[optm]\nmomentum = 0.5", "unknown key 'optm'; did you mean optim?"),
    "nothing": (b"", "recipe: missing model, phase"),
    "a megabyte": (b"#" * 1_000_001, "1,000,001 bytes are no recipe"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_recipe_is_one_line(content, message, tmp_path):
    (tmp_path / "file.toml").write_bytes(content)
    (tmp_path / "other.toml").write_text('extends = "file.toml"')
    (tmp_path / "sub").mkdir()
    assert message in refusal(name=str(tmp_path / "file.toml"))


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("folder", "pipe"):
        assert refusal(name=str(tmp_path / f"{name}.toml")).endswith("a folder or a device, not a TOML file")
    assert "File name too long" in refusal(name="x" * 300 + ".toml")
    assert "unknown recipe 'xxx" in refusal(name="x" * 300)
    for name in ("", ":", "cifar10/_published", "../recipes/cifar10/resnet20"):
        assert refusal(name=name).startswith("unknown recipe")
    for name in (".toml", "a\0b.toml", "\udcff.toml"):
        assert refusal(name=name).endswith("no such file; for the bundled recipes see nbsnn recipes")


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load_recipe(str(tmp_path / "a.toml")).hash == load_recipe("digits/resnet20").hash


def test_a_file_is_extended_from_beside_it_and_by_any_path(tmp_path, monkeypatch):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "base.toml").write_text(BASE + "[phase.2]\nepochs = 3\n[quick.phase.4]\nepochs = 1\n")
    (folder / "own.toml").write_text('extends = "base.toml"\n')
    monkeypatch.chdir(tmp_path)
    assert load_recipe("a:b/own.toml").phase["2"].epochs == 3
    assert load_recipe("a:b/own.toml:quick").phase["4"].epochs == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *((key, f"{key}: write key=value") for key in ("=", "=1", ".=1", "a.=1", ".a=1", "phase..epochs=1")),
        ("phase.².epochs=1", "phase.²: choose one of 2, 3, 4, 5, 32 bits"),
        ("phase.٢.epochs=1", "phase.٢: choose one of"),
        ("phase.2.epochs=²", "phase.2.epochs=²: must be an integer"),
        ("phase.2.epochs=٣", "phase.2.epochs=٣: must be an integer"),
        ("phase.2.epochs=1e3", "phase.2.epochs=1e3: must be an integer"),
        ("phase.2.epochs=99999999999999999999", "phase.2.epochs=99999999999999999999: must be an integer"),
        ("phase.2.lr=1e999", "phase.2.lr=1e999: must be a finite number"),
        ("phase.2.lr=٣", "phase.2.lr=٣: must be a finite number"),
        ("optim.lr=0.1", "unknown key 'optim.lr'; did you mean phase.N.lr"),
        ("lr=0.1", "unknown key 'lr'; did you mean phase.N.lr"),
        ("batch_size=3", "unknown key 'batch_size'; did you mean data.batch_size?"),
        ("phase.all=1", "phase.all=1: must be a table of epochs"),
        ("phase.all.optim.lr=1", "unknown key 'phase.all.optim'"),
        ("phase.2.epochs.x.y=1", "phase.2.epochs.x.y=1: epochs has no keys of its own"),
        ("optim.milestones=a,b", "optim.milestones=a: must be a finite number"),
        (".".join("a" * 3000) + "=1", "unknown key 'a'"),
        ("x" * 100_000 + "=1", "unknown key 'xxx"),
        ("data.root=a\0b", "data.root=a\\x00b: must be text without NUL"),
    ],
)  # fmt: skip
def test_overrides_that_mean_nothing_are_refused(override, message):
    said = refusal(override)
    assert said.startswith(message)
    assert len(said) < 600


def test_a_float_phase_comes_first(tmp_path):
    recipe = load_recipe("digits/resnet20")
    late = recipe_from_dict({**recipe.to_dict(), "phase": dict(reversed(recipe.to_dict()["phase"].items()))})
    with pytest.raises(ConfigError, match="phase 32 must be the first"):
        next(iter(train(late, tmp_path / "run")))
    assert not (tmp_path / "run").exists()
