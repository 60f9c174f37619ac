"""The report is one file that needs nothing else, every number on it is the JSON's, and it says what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from command_line import printed, refusal
from integer_nets import assembled

import nbsnn
from nbsnn.cli import main
from nbsnn.device import cpu_model
from nbsnn.errors import CheckpointError, ConfigError, MissingDependencyError
from nbsnn.report import page
from nbsnn.report.comparing import read_report
from nbsnn.report.intervals import wilson
from nbsnn.report.page import shown_number, value_at
from nbsnn.report.subjects import subject_of

CLASSES = ("round", "square & <flat>", "odd")
PAIRS = (("signed", "fixed"), ("signed", "settle"), ("unsigned", "barrier"))
LIMITS = nbsnn.ReportLimits(stepped=8, counted=4, traced=3, timed=2)


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (12, 2, 6, 6), dtype=torch.uint8)
    return nbsnn.ImageSet(pixels, torch.arange(12) % 3, (0.5, 0.5), (0.3, 0.3), CLASSES)


@pytest.fixture(scope="module")
def quantized():
    return assembled(3, ["identity"], [2]).float()


@pytest.fixture(scope="module")
def made(images, quantized, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "r.html"
    how = {"data": "shapes", "limits": LIMITS, "pairs": PAIRS, "command": "nbsnn report </script>"}
    figures = nbsnn.write_report(path, quantized, images, **how)
    return path, figures


class Page(HTMLParser):
    """The numbers of a page with what they say, its links, its ids and its words."""

    def __init__(self, text):
        super().__init__()
        self.numbers, self.links, self.ids, self.words, self.inside = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href", "action") and value is not None]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.inside.append(tag)
        if tag == "data":
            self.numbers.append([found, ""])

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside[-1:] == ["data"]:
            self.numbers[-1][1] += data
        if not {"script", "style", "svg"} & set(self.inside):
            self.words.append(data)


def test_every_number_on_the_page_is_the_one_of_the_json(made):
    path, figures = made
    text = path.read_text()
    seen = Page(text)
    plain = json.loads(json.dumps(figures))
    assert read_report(path) == plain
    assert len(seen.numbers) > 150
    for found, shown in seen.numbers:
        value = value_at(plain, found["data-path"])
        assert float(found["value"]) == value
        assert shown == shown_number(value, found["data-form"])
    for heading in ("accuracy", "layers", "raster", "weights", "energy", "speed"):
        assert any(found["data-path"].startswith(heading) for found, _ in seen.numbers) or heading == "raster"
    assert "square & <flat>" in " ".join(seen.words)


def test_the_page_needs_no_network_and_its_charts_no_script(made):
    path, _ = made
    text = path.read_text()
    seen = Page(text)
    assert path.stat().st_size < 2_000_000
    assert all(link.startswith(("#", "data:")) for link in seen.links)
    assert "url(http" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(seen.ids) == len(set(seen.ids)), "each id once"
    for link in seen.links:
        assert not link.startswith("#") or link[1:] in seen.ids
    assert text.count("<svg") >= 12
    assert not re.search(r"#0a0b(0c|1\d)", text), "every color is one of the page"
    for word in ("prefers-color-scheme: dark", "@media print", "max-width: 520px"):
        assert word in text


def test_the_raster_has_the_spikes_of_the_engine(made, quantized, images):
    _, figures = made
    network = nbsnn.lower(quantized, images.normalized()[:1], mean=images.mean, std=images.std)
    first = images.normalized()[:1]
    for way in figures["raster"]["ways"]:
        result = network.simulate(first, engine="spikes", neuron=way["neuron"], schedule=way["schedule"], keep_counts=True)
        assert way["steps"] == int(result.steps[0])
        for layer in way["layers"]:
            for position, row in zip(layer["positions"], layer["rows"], strict=True):
                assert layer["first"] + len(row) - 1 <= way["steps"]
                assert row.count("+") - row.count("-") == int(result.counts[layer["name"]][(0, *position)])


def test_what_is_measured_is_what_the_library_says(made, quantized, images):
    _, figures = made
    rows = {row["name"]: row for row in figures["accuracy"]}
    network = nbsnn.lower(quantized, images.normalized()[:1], mean=images.mean, std=images.std)
    assert all(layer["schedules"]["unsigned barrier"]["activity"]["first"] > 3 for layer in figures["layers"])
    assert rows["integer"]["top1"] == pytest.approx(nbsnn.evaluate(network, nbsnn.Batches(images, 12)).top1, abs=1e-3)
    assert (rows["integer"]["low"], rows["integer"]["high"]) == wilson(rows["integer"]["correct"], 12)
    for pair in PAIRS:
        name = " ".join(pair)
        way = network.using(engine="spikes", neuron=pair[0], schedule=pair[1])
        few = nbsnn.Batches(images.some(8), 8)
        assert rows[name]["top1"] == pytest.approx(nbsnn.evaluate(way, few).top1, abs=1e-3)
        assert rows[name]["off"] == 0 or pair[1] == "fixed"
        ledger = nbsnn.energy_ledger(network, images.normalized()[:4], neuron=pair[0], schedule=pair[1])
        found = next(way for way in figures["energy"] if way["name"] == name)
        assert found["per_image"]["additions"] == ledger.totals["additions"] / 4
        assert found["energies"][0]["ratio"] == nbsnn.price(ledger, "operations").ratio
    for layer in figures["layers"]:
        assert sum(layer["counts"]) == pytest.approx(100, abs=1e-2)
        assert sum(layer["charges"]) == pytest.approx(100, abs=1e-2)
        # a count is the charge, rounded: between −½ and ½ none, and so on
        per_spike = [sum(layer["charges"][: 1 + 4 + 2]), *(sum(layer["charges"][7 + 4 * n : 11 + 4 * n]) for n in range(2))]
        assert per_spike == pytest.approx(layer["counts"][:3], abs=1e-2)
        assert layer["schedules"]["signed settle"]["silent_after_most"] <= 9
    for weights, layer in zip(figures["weights"], network.layers.values(), strict=True):
        assert sum(weights["counts"]) == weights["weights"] == layer.weight.numel()
    assert figures["confusion"]["classes"] == list(CLASSES)
    assert sum(map(sum, figures["confusion"]["counts"])) == 12


def test_a_network_without_data_and_one_that_is_not_quantized_say_what_is_missing(quantized, images, tmp_path):
    figures = nbsnn.write_report(tmp_path / "a.html", "zoo:cifar10/resnet20-w2a2")
    assert any("no images were given" in line for line in figures["missing"])
    assert figures["accuracy"] is None
    assert figures["weights"][0]["levels"]
    assert "no images were given" in (tmp_path / "a.html").read_text()
    figures = nbsnn.write_report(tmp_path / "b.html", quantized)
    assert any("the file does not say the size of the images; give images" in line for line in figures["missing"])
    figures = nbsnn.write_report(tmp_path / "c.html", assembled_float(), images, limits=LIMITS)
    assert any("the network is not quantized; quantize it with nbsnn quantize" in line for line in figures["missing"])
    assert [row["name"] for row in figures["accuracy"]] == ["float"]
    wrong = nbsnn.ImageSet(images.images[:, :, :5], images.labels, images.mean, images.std, CLASSES)
    network = nbsnn.lower(quantized, images.normalized()[:1])
    figures = nbsnn.write_report(tmp_path / "d.html", network, wrong, limits=LIMITS)
    assert any("the images do not run: " in line for line in figures["missing"])


def assembled_float():
    from integer_nets import Assembled

    torch.manual_seed(3)
    return Assembled(["chain"], mean=True).eval()


def test_the_float_network_is_compared_where_it_is_at_hand(quantized, images, tmp_path, capsys):
    model, limits = assembled_float(), nbsnn.ReportLimits(stepped=2, counted=1, traced=1, timed=1)
    how = {"limits": limits, "pairs": PAIRS[:1]}
    lonely = nbsnn.write_report(tmp_path / "a.html", quantized, images, **how)
    assert "the accuracy of the float network, which the file or object does not hold: give that" in lonely["missing"][0]
    assert lonely["accuracy"][0]["name"] == "quantized"
    given = nbsnn.write_report(tmp_path / "b.html", quantized, images, float_network=model, **how)
    hits = model(images.normalized()).argmax(1) == images.labels
    assert (given["accuracy"][0]["name"], given["accuracy"][0]["correct"]) == ("float", int(hits.sum()))
    assert given["missing"] == []
    for bits, network in ((32, model), (2, nbsnn.quantize(model, nbsnn.QuantSpec(2, 2)))):
        (tmp_path / f"{bits}bit").mkdir()
        nbsnn.save_checkpoint(tmp_path / f"{bits}bit" / "best.safetensors", network)
    beside = subject_of(tmp_path / "2bit" / "best.safetensors", model=model)
    assert beside.missing == []
    assert torch.equal(beside.float_net(images.normalized()), model(images.normalized()))
    (tmp_path / "32bit" / "best.safetensors").write_bytes(b"half")
    assert "the accuracy of the float network: " in subject_of(tmp_path / "2bit" / "best.safetensors", model=model).missing[0]
    with pytest.raises(ConfigError, match=r"float_network: is of quantized form; name the float network that was trained"):
        subject_of(quantized, float_network=quantized)
    words = ["report", "zoo:cifar10/resnet20-w2a2", "--float", "zoo:cifar10/resnet20-w2a2", "--html", str(tmp_path / "c.html")]
    assert "zoo:cifar10/resnet20-w2a2: is of quantized form; name the float network" in refusal(capsys, *words)


def test_the_processor_has_its_name(made):
    _, figures = made
    assert figures["machine"]["cpu"].startswith(f"{cpu_model()}, ")


def test_a_run_that_was_killed_shows_what_there_is(quantized, images, tmp_path):
    run = tmp_path / "run"
    row = {"train_top1": 1.0, "top1": 2.0, "lr": 0.1, "seconds": 3.0, "images_per_second": 4.0}
    log = [{"epoch": epoch, "loss": 3.0 / epoch} | row for epoch in (1, 2)]
    for bits, network in ((32, assembled_float()), (2, quantized), (3, None)):
        place = run / f"{bits}bit"
        place.mkdir(parents=True)
        (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log[: 1 if bits == 2 else 2]))
        if network is None:
            (place / "training.safetensors").write_bytes(b"half a file")
            continue
        for name in ("best.safetensors", "last.safetensors") if bits == 32 else ("best.safetensors",):
            nbsnn.save_checkpoint(place / name, network)
    with pytest.raises(CheckpointError, match="holds no run of nbsnn train"):
        subject_of(tmp_path)
    model = assembled_float()
    figures = nbsnn.write_report(tmp_path / "r.html", run, images, model=model, limits=LIMITS)
    missing = "\n".join(figures["missing"])
    assert "the rest of phase 3 bits: the run ended after epoch 2" in missing
    assert "the rest of phase 2 bits: the run ended after epoch 1" in missing
    assert "the network of phase 3 bits: " in missing
    assert [(phase["bits"], phase["finished"], len(phase["log"])) for phase in figures["phases"]] == [
        (32, True, 2), (3, False, 2), (2, False, 1),
    ]  # fmt: skip
    assert 'aria-label="validation"' in (tmp_path / "r.html").read_text()


def test_a_page_of_a_large_network_leaves_out_tables_and_says_so(made, monkeypatch):
    path, figures = made
    size = path.stat().st_size
    monkeypatch.setattr(page, "MOST_PAGE_BYTES", size - 10_000)
    text = page.page_of(figures)
    assert len(text.encode()) <= size - 10_000
    assert "Left out of this page for its size, and in the JSON within it: spikes per synapse of each layer" in text
    monkeypatch.setattr(page, "MOST_PAGE_BYTES", 1000)
    with pytest.raises(ConfigError, match="more than 1000; give fewer schedules"):
        page.page_of(figures)


def test_a_long_network_has_charts_of_forty_layers_at_most(made):
    _, figures = made
    first = figures["layers"][0]
    text = page.page_of({**figures, "layers": [{**first, "name": f"layer{n}"} for n in range(81)]})
    assert [f"Counts of spikes ({n} of 3)" in text for n in (1, 2, 3, 4)] == [True, True, True, False]
    heights = [
        float(height) for height in re.findall(r'aria-label="(?:counts|charges)[^>]*viewBox="0 0 [\d.]+ ([\d.]+)"', text)
    ]
    assert len(heights) == 6
    assert max(heights) < 72 * 9  # points: on a page
    assert text.count("<thead>") == text.count("<table>")  # which repeats on each printed page
    assert "Counts of spikes</h3>" in page.page_of(figures)


def test_what_is_no_subject_is_refused(quantized, images, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="give the quantized network that it was made from"):
        nbsnn.write_report(tmp_path / "r.html", nbsnn.to_spiking(quantized, images.normalized()[:1]))
    with pytest.raises(ConfigError, match=r"a report is about a run folder, a checkpoint, zoo:NAME or a network, not a int"):
        nbsnn.write_report(tmp_path / "r.html", 3)
    with pytest.raises(ConfigError, match=r"r.pdf: a report is a .html file; choose a name such as net.html$"):
        nbsnn.write_report(tmp_path / "r.pdf", quantized)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(
        MissingDependencyError, match=r"writing a report needs the package jinja2: pip install 'nbsnn\[report\]'"
    ):
        nbsnn.write_report(tmp_path / "r.html", quantized)


def test_the_verbs_write_read_and_compare_reports(tmp_path, capsys):
    html, out, side = (str(tmp_path / name) for name in ("r.html", "r.json", "side.html"))
    words = ["report", "zoo:cifar10/resnet20-w2a2", "--data", "sample", "--limit", "2", "--schedule", "fixed", "--html", html]
    assert main([*words, "--out", out]) == 0
    assert "signed fixed" in capsys.readouterr().out
    figures = json.loads((tmp_path / "r.json").read_text())
    assert read_report(tmp_path / "r.html") == figures
    assert figures["command"].startswith("nbsnn report zoo:cifar10/resnet20-w2a2 --data sample")
    told = printed(capsys, "compare", html, out)
    assert (told["names"], told["fallen"]) == ([html, out], [])
    worse = json.loads(json.dumps(figures))
    worse["accuracy"][0]["top1"] -= 2
    worse["accuracy"][2]["off"] += 0.25
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    capsys.readouterr()
    assert main(["compare", out, str(tmp_path / "worse.json"), "--margin", "1", "--html", side]) == 1
    text = capsys.readouterr().out
    assert "2.00 points below" in " ".join(text.split())
    assert "neurons off in" in " ".join(text.split())
    assert "2.00 points below" in (tmp_path / "side.html").read_text()
    assert main(["compare", out, str(tmp_path / "worse.json"), "--margin", "2", "--off-margin", "0.3"]) == 0
    (tmp_path / "x.json").write_text("{}")
    assert "x.json: is not a report of nbsnn" in refusal(capsys, "compare", out, str(tmp_path / "x.json"))
    assert "r.pdf: a report is a .html file" in refusal(capsys, *words[:-1], str(tmp_path / "r.pdf"))
    assert "takes two or more" in refusal(capsys, "compare", out)
    (tmp_path / "own.html").write_text("<!DOCTYPE html><p>mine</p>")
    assert "is not a file that nbsnn wrote" in refusal(capsys, *words[:-1], str(tmp_path / "own.html"))
