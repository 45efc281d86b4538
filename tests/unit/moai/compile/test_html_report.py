import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from support import moai
from tensorguard.moai.compile import compile_network, predict_pack, report_compiled, report_pack
from tensorguard.moai.compile.html_report import key_bytes
from tensorguard.moai.compile.network import Activation, Dense

ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "thead", "tbody",
    "tr", "th", "td", "figure", "figcaption", "svg", "rect", "polyline", "text",
}  # fmt: skip


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts, self.styles = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        (self.styles if self.tags[-1:] == ["style"] and "{" in data else self.texts).append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


@pytest.fixture(scope="module")
def compiled():
    rng = np.random.default_rng(0)
    layers = [
        Dense("a", rng.normal(size=(9, 3)), rng.normal(size=9), Activation("gelu")),
        Dense("b", rng.normal(size=(9, 9)) / 3, rng.normal(size=9), Activation("tanh")),
        Dense("c", rng.normal(size=(2, 9)), np.zeros(2), None),
    ]
    x = rng.normal(size=(200, 3))
    return compile_network(moai.network(*layers, features=3), x), x


def test_a_report_shows_every_layer_its_curves_and_the_keys(compiled):
    network, x = compiled
    page = report_compiled(network, x, title="model 1.0")
    reader = read(page)
    text = " ".join(reader.texts)
    for layer in network.precision.layers:
        assert layer.name in text
    assert reader.tags.count("svg") == 2 + 2 * 2
    assert "gelu, degree" in text
    assert f"{key_bytes(network.parameters, network.plan)[1] / (1 << 20):.1f} MiB" in text
    assert not re.search(r"\bnan\b|\binf\b", page)
    assert len(page) < 1 << 19


def test_a_report_loads_and_runs_nothing(compiled):
    network, x = compiled
    page = report_compiled(network, x, title='<script>alert(1)</script>"&')
    reader = read(page)
    assert set(reader.tags) <= ALLOWED
    names = {name for name, _ in reader.attributes}
    assert not names & {"href", "src", "style", "xlink:href"}
    assert not [name for name in names if name.startswith("on")]
    assert '<script>alert(1)</script>"&' in " ".join(reader.texts)
    policy = dict(reader.attributes)["content"]
    digest = base64.b64encode(hashlib.sha256("".join(reader.styles).encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy


def test_a_finished_pack_has_a_report_too():
    model = moai.reacher()
    x = model.inputs[:100]
    page = report_pack(model.pack, predict_pack(model.pack, x), x)
    assert "normalised inputs" in page
    assert read(page).tags.count("svg") == 3


def test_a_linear_model_and_units_that_never_move_are_no_trouble():
    x = np.random.default_rng(1).normal(size=(50, 2))
    linear = Dense("a", np.eye(2), np.zeros(2), None)
    page = report_compiled(compile_network(moai.network(linear, features=2), x), x, title="linear")
    assert read(page).tags.count("svg") == 2
    still = Dense("a", np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([0.0, 2.0]), Activation("tanh"))
    last = Dense("b", np.ones((1, 2)), np.zeros(1), None)
    network = compile_network(moai.network(still, last, features=2), x)
    assert "nan" not in report_compiled(network, x, title="still")
