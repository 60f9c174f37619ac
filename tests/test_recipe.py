"""Recipes: the bundled ones, overrides with types, refusals with close matches, and what the hash depends on."""

import pytest

from nbsnn.errors import ConfigError
from nbsnn.models import list_models
from nbsnn.recipe import OptimSpec, Phase, QuantSpec, recipe_from_dict
from nbsnn.recipes import departures, list_recipes, load_recipe
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
    assert load_recipe("cifar10/resnet18").spec(3) == QuantSpec(32, 3, 32)


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
        ("data.batch_size=abc", "data.batch_size=abc: must be a whole number"),
        ("data.batch_size=1.5", "data.batch_size=1.5: must be a whole number"),
        ("data.batch_size=1", "data.batch_size=1: must be a whole number from 2 (batch norm)"),
        ("optim.nesterov=maybe", "optim.nesterov=maybe: must be true or false"),
        ("optim.schedule=linear", "optim.schedule=linear: must be step or cosine"),
        ("phase.2.lr=-1", "phase.2.lr=-1.0: must be a positive rate"),
        ("phase.2.lr=nan", "phase.2.lr=nan: must be a finite number"),
        ("phase.2.lr=inf", "phase.2.lr=inf: must be a finite number"),
        ("phase.2.weight_decay=inf", "phase.2.weight_decay=inf: must be a finite number"),
        ("optim.lr_gamma=-1", "optim.lr_gamma=-1.0: must be a factor in (0, 1]"),
        ("optim.threshold_lr=-1", "optim.threshold_lr=-1.0: must be 0 (frozen) or a positive factor"),
        ("optim.scale_lr=inf", "optim.scale_lr=inf: must be a finite number"),
        ("optim.clip_norm=inf", "optim.clip_norm=inf: must be a finite number"),
        ("phase.2.epochs=0", "phase.2.epochs=0: must be a whole number from 1"),
        ("optim.momentum=1", "optim.momentum=1.0: must be a number in [0, 1)"),
        ("optim.milestones=0.5,1.5", "optim.milestones=(0.5, 1.5): must be fractions in (0, 1)"),
        ("phase.7.epochs=3", "phase.7: choose one of 2, 3, 4, 5, 32 bits (32 is float)"),
        ("phase.two.epochs=3", "phase.two: choose one of 2, 3, 4, 5, 32 bits (32 is float)"),
        ("quant.edge_bits=7", "quant.edge_bits=7: must be 8, or 32 (float)"),
        ("quant.edge_bits=7.5", "quant.edge_bits=7.5: must be a whole number"),
        ("phase.2=3", "phase.2=3: must be a table of epochs, lr, weight_decay"),
        ("seed", "seed: write key=value, such as data.batch_size=64"),
        ("name.first=x", "name.first=x: name has no keys of its own"),
        ("seed=-1", "seed=-1: must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(override, message):
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10/resnet21", "unknown recipe 'cifar10/resnet21'; did you mean cifar10/resnet"),
        ("cifar10/resnet20:quick", "unknown variant of cifar10/resnet20 'quick'; known: fast, paper"),
        ("no/such.toml", "unknown recipe 'no/such.toml'"),
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
    assert refusal(name=str(path)) == "quant.edge_bits=7.5: must be a whole number"


@pytest.mark.parametrize("bits", [7.5, "4", 0, 9, True])
def test_bits_must_be_whole_and_known(bits):
    with pytest.raises(ConfigError, match=f"^act_bits={bits!r}: choose one of 2, 3, 4, 5, 6, 7, 8, 32"):
        QuantSpec(act_bits=bits)


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match=r"^optim.nesterov=True: must be false where optim.momentum is 0$"):
        load_recipe("cifar10/resnet20", ["optim.nesterov=true", "optim.momentum=0"])


def test_departures_are_the_overrides_that_a_recipe_was_loaded_with():
    given = ["phase.32.epochs=20", "phase.4.distill=0.0", "optim.milestones=0.3,0.6", "data.augment=false", "data.root=other"]
    assert departures(load_recipe("cifar10/resnet20:fast")) == []
    changed = load_recipe("cifar10/resnet20:fast", given)
    assert sorted(departures(changed)) == sorted(given[:-1])
    assert load_recipe("cifar10/resnet20:fast", departures(changed)).hash == changed.hash
    assert departures(changed.until(32)) == [d for d in departures(changed) if not d.startswith("phase.4")]
