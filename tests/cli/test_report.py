"""report.json and report.html of the demo run: figures equal what plan, statistics, evaluation and checkpoint say, and the
page that headless Chromium draws shows them, on a desk and on a phone, in light and dark, without a network."""
import html
import html.parser
import json
import re
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from safetensors import safe_open

import mdp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system (tools/check installs it where apt-get is)")
INSIDE = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.S)
DARK = "--blink-settings=preferredColorScheme=0"


def chromium(folder, page, *words):
    """stdout of headless Chromium on a file; a message of the page on the console fails."""
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
                           "--virtual-time-budget=5000", "--enable-logging=stderr", "--log-level=0", *words, page.as_uri()],
                          capture_output=True, text=True, timeout=90, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


class Elements(html.parser.HTMLParser):
    """Elements with data- attributes: [(attributes, text)], and the text of <title>."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.title = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append((tag, {k: v for k, v in attrs if k.startswith("data-")}, []))

    def handle_endtag(self, tag):
        while self.open:
            name, attributes, text = self.open.pop()
            if attributes:
                self.found.append((attributes, "".join(text)))
            if name == "title" and not self.title:
                self.title = "".join(text)
            if name == tag:
                return

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def keyed(self):
        return {a["data-key"]: (a.get("data-value"), text) for a, text in self.found if "data-key" in a}


@pytest.fixture(scope="module")
def report(demo_run):
    return mdp.read_json(demo_run / "report.json")


@pytest.fixture(scope="module")
def drawn(demo_run, tmp_path_factory):
    return Elements(chromium(tmp_path_factory.mktemp("chromium"), demo_run / "report.html", "--dump-dom"))


def size_of(folder):
    values = n_byte = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                values += tensor.numel()
                n_byte += tensor.numel() * tensor.element_size()
    return values, n_byte


def test_report_counts_what_the_checkpoints_hold(demo_run, report):
    for side, folder in (("before", mdp.DEMO), ("after", demo_run / "hf")):
        assert (report[side]["parameters"], report[side]["bytes"]) == size_of(folder)
    assert report["before"]["experts"] == 48 and report["after"]["experts"] == 36
    assert report["sentence"].startswith("A quarter of the experts removed; perplexity ")


def test_report_repeats_plan_statistics_and_evaluation(demo_run, report):
    plan, evaluation = mdp.read_json(demo_run / "plan.json"), mdp.read_json(demo_run / "eval.json")
    assert report["streams"] == evaluation["streams"]
    for s, side in enumerate(("before", "after")):
        assert report["perplexity"]["total"][side] == evaluation["streams"][s]["perplexity"]["total"]
    with h5py.File(demo_run / "stats.h5") as stats:
        names = [category["name"] for category in report["observed"]["categories"]]
        for layer, planned in zip(report["layers"], plan["layers"], strict=True):
            counts = stats[f"layers/{layer['layer']}/counts"][...]
            assert [layer["counts"][name] for name in names] == counts.tolist()
            assert layer["criteria"]["frequency"] == counts.sum(0).tolist()
            assert layer["scores"] == planned["scores"] == layer["criteria"]["reap"]
            assert layer["kept"] == [expert["from"][0] for expert in planned["experts"]]
            assert layer["dropped"] == [expert["expert"] for expert in planned["dropped"]]


def test_report_names_the_worst_category(report):
    growth = {name: pair["after"] / pair["before"] for name, pair in report["perplexity"]["categories"].items()}
    assert report["sentence"].endswith(f"; the worst category is {max(growth, key=growth.get)}.")


def test_phases_add_up_to_the_run(report):
    phases = {phase["name"]: phase["seconds"] for phase in report["run"]["phases"]}
    assert list(phases) == ["prepare", "observe", "plan", "evaluate", "write"]
    assert min(phases.values()) >= 0
    assert 0.9 * report["run"]["seconds"] <= sum(phases.values()) <= report["run"]["seconds"]


def test_a_refit_is_a_phase_of_its_own(tmp_path):
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [range(64)] * 8})
    said = mdp.succeed(2, "run", "--model", mdp.GOLDEN / "mixtral", "--tokens", tokens, "--method", "reap", "--keep", 4, "--refit", "joint", "--ridge", "1e-3",
                       "--out", tmp_path / "out").stdout
    phases = mdp.read_json(tmp_path / "out" / "report.json")["run"]["phases"]
    assert [phase["name"] for phase in phases] == ["prepare", "observe", "plan", "refit", "write"]
    assert dict((phase["name"], phase["seconds"]) for phase in phases)["refit"] > 0
    assert re.search(r"^time     prepare \S+ m?s, observe \S+ m?s, plan \S+ m?s, refit \S+ m?s, write \S+ m?s$", said, re.M), said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r'"name": ?"refit"', page)


UNITS = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "kB": 1e3, "MB": 1e6, "GB": 1e9, "%": 0.01, "s": 1}


def shown(text):
    """"1 min 3 s", "11.09 MB", "5,546" as a number."""
    value = 0.0
    for number, unit in re.findall(r"([-\d.,]+(?:e[-+]\d+)?)\s*([A-Za-z%]*)", text):
        value += float(number.replace(",", "")) * ({**UNITS, "min": 60, "h": 3600}[unit] if unit else 1)
    return value


def precision(path, value):
    """What the page rounds to: four digits, but shares to a tenth of a percent and times for people."""
    if path.endswith("seconds"):
        return {"rel": 0, "abs": 0.0051 if value < 10 else 0.051 if value < 60 else 0.51}
    if "agreement" in path or "match" in path:
        return {"rel": 0, "abs": 0.00051}
    return {"rel": 6e-3 if "kl_to_original/categories" in path else 6e-4, "abs": 0}


@browser
def test_every_figure_of_the_page_is_the_reports(report, drawn):
    keyed = drawn.keyed()
    assert keyed.pop("sentence")[1].replace("\u00a0\u2192\u00a0", " -> ") == report["sentence"]
    assert keyed.pop("run/command")[1].replace("\\\n", "").split() == report["run"]["command"]
    wanted = {"perplexity/total/before", "perplexity/total/after", "after/parameters", "after/bytes", "run/seconds",
              "run/memory_peak_largest", *(f"perplexity/categories/{name}/after" for name in report["perplexity"]["categories"])}
    assert wanted <= keyed.keys()
    for path, (value, text) in keyed.items():
        found = report
        for step in path.split("/"):
            found = found[int(step)] if isinstance(found, list) else found[step]
        assert float(value) == found, path
        assert shown(text) == pytest.approx(found, **precision(path, found)), (path, text)


@browser
def test_page_draws_every_expert_as_planned(demo_run, drawn):
    cells = {(int(a["data-layer"]), int(a["data-expert"]), a["data-state"]) for a, _ in drawn.found if "data-state" in a}
    plan = mdp.read_json(demo_run / "plan.json")
    assert cells == {(layer["layer"], e["from"][0], "kept") for layer in plan["layers"] for e in layer["experts"]} | \
        {(layer["layer"], e["expert"], "dropped") for layer in plan["layers"] for e in layer["dropped"]}


@browser
def test_page_shows_what_share_of_routings_met_a_removed_expert(demo_run, report, drawn):
    names = [category["name"] for category in report["observed"]["categories"]]
    with h5py.File(demo_run / "stats.h5") as stats:
        counts = np.stack([stats[f"layers/{layer['layer']}/counts"][...] for layer in report["layers"]])
    gone = np.zeros((counts.shape[0], counts.shape[2]), bool)
    for i, layer in enumerate(report["layers"]):
        gone[i, layer["dropped"]] = True
    want = (counts * gone[:, None, :]).sum((0, 2)) / counts.sum((0, 2))
    found = {a["data-lost"]: float(a["data-value"]) for a, _ in drawn.found if "data-lost" in a}
    assert found.keys() == set(names)
    assert [found[name] for name in names] == pytest.approx(want.tolist(), rel=1e-12)


@browser
def test_page_is_not_blank_and_knows_the_dark(demo_run, tmp_path):
    (tmp_path / "blank.html").write_text("<!doctype html><title>nothing</title>")
    size = {}
    for name, page, *words in (("blank", tmp_path / "blank.html"), ("light", demo_run / "report.html"), ("dark", demo_run / "report.html", DARK)):
        chromium(tmp_path, page, "--window-size=1280,1400", f"--screenshot={tmp_path / name}.png", *words)
        size[name] = len((tmp_path / f"{name}.png").read_bytes())
    assert size["light"] > 10 * size["blank"] and size["dark"] > 10 * size["blank"]
    assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()


def with_everything(text):
    """The page of a run that also had tasks, super experts and errors of layers."""
    report = json.loads(INSIDE.search(text).group(1))
    for stream in report["streams"]:
        stream["tasks"] = {f"{name}_continuation": {"n": 100, "accuracy_sum": 0.333, "accuracy_token": 0.48, "accuracy_byte": 1.0}
                           for name in ("arithmetic", "python")}
    report["recipe"]["super_experts"] = [{"layer": 1, "expert": e, "max_abs": 1234.5} for e in range(3)]
    report["recipe"]["options"]["protect_super_experts"] = True
    for layer in report["layers"]:
        layer["error"] = 0.01 * (layer["layer"] + 1)
    return INSIDE.sub(lambda found: found.group(0).replace(found.group(1), json.dumps(report)), text)


@browser
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_its_window(demo_run, tmp_path, width):
    page = html.escape(with_everything((demo_run / "report.html").read_text(encoding="utf-8")), quote=True)
    (tmp_path / "frame.html").write_text(
        f"<!doctype html><title>-</title><iframe width={width} height=3000 style='border:0' srcdoc=\"{page}\" onload='const"
        " r = this.contentDocument.documentElement; document.title = r.scrollWidth + \" \" + r.clientWidth'></iframe>", encoding="utf-8")
    scroll, client = Elements(chromium(tmp_path, tmp_path / "frame.html", "--dump-dom")).title.split()
    assert int(client) == width and int(scroll) <= width


@browser
def test_page_prints_on_two_pages(demo_run, tmp_path):
    chromium(tmp_path, demo_run / "report.html", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())) <= 2


def test_page_loads_nothing(demo_run):
    text = (demo_run / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\s\"'<>\\]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\s(?:src|href)=|@import|url\(", text)
    assert json.loads(INSIDE.search(text).group(1)) == mdp.read_json(demo_run / "report.json")


# ---- merged experts

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"


@pytest.fixture(scope="module")
def merged_run(tmp_path_factory):
    """The demo, half of whose experts are merged into others."""
    folder, random = tmp_path_factory.mktemp("merged"), np.random.default_rng(6)
    tokens = mdp.write_tokens(folder / "tokens.h5", {"a": [random.integers(1000, size=120) for _ in range(8)]})
    mdp.succeed(2, "run", "--model", mdp.DEMO, "--tokens", tokens, "--eval-tokens", tokens, "--method", "hc-smoe", "--align", "weight", "--keep", 4,
                "--format", "hdf5", "--out", folder / "out")
    return folder / "out"


def similarities(folder, report):
    """The layers' matrices of what groups were made by, larger: more alike."""
    name = report["recipe"]["merge"]["similarity"]
    with h5py.File(folder / "stats.h5") as stats:
        datasets = [stats[f"layers/{layer['layer']}/similarity/{name}"] for layer in report["layers"]]
        return [-one[...] if one.attrs["kind"] in ("distance", b"distance") else one[...] for one in datasets]


def levels_of(matrix, order, cells):
    """Means of the pairs of neighbours that share a cell, from the least to the most in 64 steps; and the two."""
    n = len(order)
    ordered = matrix[np.ix_(order, order)].astype(float)
    np.fill_diagonal(ordered, np.nan)
    edges = [c * n // cells for c in range(cells + 1)]
    means = np.full((cells, cells), np.nan)
    for a in range(cells):
        for b in range(a + 1):
            part = ordered[edges[a]:edges[a + 1], edges[b]:edges[b + 1]]
            means[a, b] = np.nanmean(part) if np.isfinite(part).any() else np.nan
    least, most = np.nanmin(means), np.nanmax(means)
    steps = np.floor(64 * (means - least) / (most - least))
    return np.where(np.isnan(means), 63, np.minimum(steps, 63))[np.tril_indices(cells)], least, most


def check_similarity(layer, planned, matrix, cells):
    shown = layer["similarity"]
    order, groups = shown["order"], np.split(shown["order"], np.cumsum(shown["groups"])[:-1])
    assert sorted(order) == list(range(len(matrix))) and shown["cells"] == cells
    assert sorted(sorted(group.tolist()) for group in groups) == sorted(expert["from"] for expert in planned["experts"])
    wanted, least, most = levels_of(matrix, order, cells)
    found = np.array([LETTERS.index(letter) for letter in shown["levels"]])
    assert np.abs(found - wanted).max() <= 1 and (found != wanted).mean() < 0.01
    assert sorted(np.abs([shown["least_alike"], shown["most_alike"]])) == pytest.approx(sorted(np.abs([least, most])), rel=1e-6)


def test_a_report_of_merges_says_what_was_merged_and_how(merged_run):
    report, plan = mdp.read_json(merged_run / "report.json"), mdp.read_json(merged_run / "plan.json")
    assert report["sentence"].startswith("Half of the experts merged into others; perplexity ")
    for layer, planned, matrix in zip(report["layers"], plan["layers"], similarities(merged_run, report), strict=True):
        several = [{key: value for key, value in expert.items() if key != "arrays"} for expert in planned["experts"] if expert["action"] == "merge"]
        assert layer["merges"] == several and layer["merged"] == [expert["from"] for expert in several]
        check_similarity(layer, planned, matrix, 8)


def test_inspect_prints_groups_and_what_router_rows_are_made_of(merged_run):
    said = json.loads(mdp.succeed(1, "inspect", merged_run / "plan.json", "--json").stdout)
    assert [layer["merges"] for layer in said["layers"]] == [layer["merges"] for layer in mdp.read_json(merged_run / "report.json")["layers"]]
    assert all(one["router"] == "mean" and one["align"] == "weight" for layer in said["layers"] for one in layer["merges"])
    table = mdp.succeed(1, "inspect", merged_run / "plan.json").stdout
    assert table.count('"dominant":') == sum(len(layer["merges"]) for layer in said["layers"])


@browser
def test_page_of_merges_draws_groups_and_says_how(merged_run, tmp_path):
    """A script at the end counts the shades of every canvas."""
    report = mdp.read_json(merged_run / "report.json")
    text = (merged_run / "report.html").read_text(encoding="utf-8")
    count = ("<script>document.querySelectorAll('canvas').forEach((one) => { const seen = new Set(), of = one.getContext('2d').getImageData(0, 0, one.width, "
             "one.height).data; for (let i = 0; i < of.length; i += 4) seen.add(of[i] << 16 | of[i + 1] << 8 | of[i + 2]); one.dataset.shades = seen.size; });</script>")
    (tmp_path / "page.html").write_text(text.replace("</body>", count + "</body>"), encoding="utf-8")
    dom = chromium(tmp_path, tmp_path / "page.html", "--dump-dom")
    found = [a for a, _ in Elements(dom).found if "data-similar" in a]
    assert [int(a["data-similar"]) for a in found] == [layer["layer"] for layer in report["layers"]]
    for a, layer in zip(found, report["layers"]):
        assert a["data-order"].split() == [str(e) for e in layer["similarity"]["order"]] and int(a["data-shades"]) > 10
        assert a["data-groups"].split() == [str(n) for n in layer["similarity"]["groups"]]
    plain = html.unescape(re.sub(r"<[^>]*>", "", dom))
    assert "merged by frequency (groups: hierarchical, average linkage, by output-mean-euclidean; neurons matched by weight; router rows: mean)" in plain
    assert "Which experts stay, and which are merged" in plain and "router row: mean" in plain


def test_similarities_of_many_experts_stay_small(tmp_path):
    random = np.random.default_rng(2)
    mdp.tool("make-shape-model", "--hidden", 64, "--intermediate", 16, "--layers", 2, "--experts", 150, "--vocab", 64, "--out", tmp_path / "model")
    tokens = mdp.write_tokens(tmp_path / "tokens.h5", {"a": [random.integers(64, size=60) for _ in range(4)]})
    mdp.succeed(2, "run", "--model", tmp_path / "model", "--tokens", tokens, "--method", "hc-smoe", "--group-by", "weight-cosine", "--keep", 75, "--format", "hdf5",
                "--out", tmp_path / "out")
    report, plan = mdp.read_json(tmp_path / "out" / "report.json"), mdp.read_json(tmp_path / "out" / "plan.json")
    for layer, planned, matrix in zip(report["layers"], plan["layers"], similarities(tmp_path / "out", report), strict=True):
        check_similarity(layer, planned, matrix, 64)
        assert len(json.dumps(layer["similarity"])) < 4000
