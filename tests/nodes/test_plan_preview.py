"""The routes behind the picture in Load PARO, asked over HTTP of real ComfyUIs."""

from __future__ import annotations

import json
import os
import random
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_plan import make_plan
from paro_attention.calibration import PlanRuntime, RuntimeOptions, save_plan
from safetensors.torch import save_file

pytestmark = pytest.mark.comfy
SECRET = "nobody may read this"


@pytest.fixture(scope="module")
def small():
    return make_plan((4, 20, 24), 3, 4)


@pytest.fixture(scope="module")
def served(host, small):
    """The host with a plan, with things that are no plans, and with ways out of the folder."""
    plans: Path = host.plans
    plans.mkdir(parents=True, exist_ok=True)
    outside = host.base / "outside"
    outside.mkdir(exist_ok=True)
    made = [plans / "sub" / "small.safetensors"]
    made[0].parent.mkdir(exist_ok=True)
    save_plan(small, made[0])
    save_plan(small, outside / "secret.safetensors")
    (outside / "secret.txt").write_text(SECRET)
    good = made[0].read_bytes()
    files: dict[str, bytes] = {
        "empty": b"",
        "text": b"not a plan",
        "cut": good[: len(good) // 2],
        "cut-header": good[:100],
        "long-header": struct.pack("<Q", 1 << 62) + good[8:],
        "broken-json": good.replace(b'\\"schema\\"', b'\\"schema', 1),
        "other-schema": good.replace(b'schema\\": 1', b'schema\\": 9', 1),
    }
    for name, content in files.items():
        made.append(plans / f"{name}.safetensors")
        made[-1].write_bytes(content)
    made.append(plans / "no-plan.safetensors")
    save_file({"x": small.tail_bias}, made[-1])
    made.append(plans / "huge.safetensors")
    with made[-1].open("wb") as file:
        file.truncate(3 << 30)
    made.append(plans / "a folder.safetensors")
    made[-1].mkdir()
    for name, target in {
        "link": outside / "secret.safetensors",
        "link-text": outside / "secret.txt",
        "link-nowhere": outside / "nothing",
        "link-loop": plans / "link-loop.safetensors",
        "link-device": Path("/dev/zero"),
    }.items():
        made.append(plans / f"{name}.safetensors")
        made[-1].symlink_to(target)
    (plans / "link-folder").symlink_to(outside, target_is_directory=True)
    if hasattr(os, "mkfifo"):
        made.append(plans / "pipe.safetensors")
        os.mkfifo(made[-1])
    yield host
    (plans / "link-folder").unlink()
    for path in made:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def ask(host: Any, route: str, raw: str | None = None, **query: Any) -> tuple[int, bytes]:
    """Status and body; `raw` is a query string that is sent as it stands."""
    text = urllib.parse.urlencode(query) if raw is None else raw
    url = f"http://127.0.0.1:{host.port}/paro/{route}?{text}"
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def unpack(body: bytes) -> dict[str, Any]:
    """The header of a packed layer with its arrays in place of their descriptions."""
    (size,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + size])
    for name, what in header["arrays"].items():
        count = int(np.prod(what["shape"]))
        found = np.frombuffer(body, what["type"], count, 4 + size + what["at"])
        header["arrays"][name] = found.reshape(what["shape"])
    return header


NAME = "sub/small.safetensors"


def test_describes_a_plan(served, small):
    status, body = ask(served, "plan", plan=NAME)
    told = json.loads(body)
    assert status == 200
    assert (told["layers"], told["heads"], told["tokens"]) == (3, 4, small.grid.tokens)
    assert told["orders"] == [small.order_names(layer) for layer in range(3)]
    assert np.shape(told["recall"]) == (3, 4, 32)
    assert np.allclose(told["recall"], small.recall_profile.mean(2), atol=1e-4)


def test_ranks_are_those_of_the_run_time(served, small):
    runtime = PlanRuntime(small, small.grid, RuntimeOptions(density=0.3, warmup=0.0), "cpu")
    for layer in range(3):
        for band, sigma in enumerate((0.95, 0.6, 0.4, 0.1)):
            told = unpack(ask(served, "preview", plan=NAME, layer=layer, band=band)[1])
            mask, mass = runtime.mask(layer, sigma), runtime._predictor(layer, band)
            counts = mask.kv_num_blocks.sum(1).numpy()
            rank = told["arrays"]["rank"]
            blocks = rank[0].size
            assert told["every"] and rank.shape[1:] == runtime.blocks
            for head, count in enumerate(counts):
                painted = torch.from_numpy(rank[head] < count / blocks * 65535)
                computed = np.zeros_like(painted)
                offsets = mask.row_offsets[head * len(computed) :].tolist()
                for row in range(len(computed)):
                    listed = mask.kv_indices[offsets[row] : offsets[row + 1]]
                    computed[row, listed.long()] = True
                assert painted.sum() == count
                # Only blocks of equal mass may change places.
                kept, wanted = (mass[head][chosen].sort().values for chosen in (painted, computed))
                assert torch.allclose(kept, wanted, rtol=1e-5)


def test_mass_is_what_the_plan_predicts(served, small):
    mass = PlanRuntime(small, small.grid, RuntimeOptions(), "cpu")._predictor(1, 2).numpy()
    codes = unpack(ask(served, "preview", plan=NAME, layer=1, band=2)[1])["arrays"]["mass"]
    wanted = 255 + 16 * np.log2(mass / mass.max((1, 2), keepdims=True))
    assert np.abs(codes - np.clip(wanted, 0, 255)).max() <= 1


def test_model_order_shows_every_head_in_fhw(served, small):
    own = unpack(ask(served, "preview", plan=NAME, layer=1, band=0)[1])["arrays"]
    model = unpack(ask(served, "preview", plan=NAME, layer=1, band=0, order="model")[1])["arrays"]
    names = small.order_names(1)
    same = [head for head, name in enumerate(names) if name == "FHW"]
    other = [head for head, name in enumerate(names) if name != "FHW"]
    assert other
    for head in range(4):
        assert np.array_equal(own["mass"][head], model["mass"][head]) == (head in same)


@pytest.mark.parametrize(
    "query",
    [
        {"layer": 3},
        {"layer": -1},
        {"layer": "1.5"},
        {"layer": "²"},
        {"layer": "9" * 5000},
        {"band": 4},
        {"band": "nan"},
        {"order": "../plan"},
        {"dense_layers": "99"},
        {"dense_layers": "0" * 5000},
    ],
)
def test_refuses_what_the_plan_does_not_have(served, query):
    status, body = ask(served, "preview", plan=NAME, **query)
    assert status == 400
    assert json.loads(body)["error"]


NAMES = [
    "", ".", "..", "/", "\\", "auto", "none", "sub", "sub/", "sub/small", "sub\\small.safetensors",
    "sub//small.safetensors", "./sub/small.safetensors", "sub/../sub/small.safetensors",
    "../outside/secret.safetensors", "..\\outside\\secret.safetensors", "../outside/secret.txt",
    "sub/../../outside/secret.txt", "/etc/passwd", "file:///etc/passwd", "~/.bashrc",
    "C:\\Windows\\win.ini", "\\\\host\\share",
    "%2e%2e%2foutside%2fsecret.safetensors", "%252e%252e%252foutside", "..%c0%af..%c0%afetc/x",
    "sub/small.safetensors\0", "sub/small.safetensors\0.txt", "\0", "x" * 5000, "..;/secret", "con",
    "link.safetensors", "link-text.safetensors", "link-nowhere.safetensors",
    "link-loop.safetensors", "link-device.safetensors", "link-folder/secret.safetensors",
    "link-folder/secret.txt", "pipe.safetensors", "a folder.safetensors", "huge.safetensors",
    "empty.safetensors", "text.safetensors", "cut.safetensors", "cut-header.safetensors",
    "long-header.safetensors", "broken-json.safetensors", "other-schema.safetensors",
    "no-plan.safetensors", "sub/small.safetensors/", "SUB/small.safetensors", "😀", "\u202e",
]  # fmt: skip


@pytest.mark.parametrize("route", ["plan", "preview"])
def test_serves_nothing_but_plans_of_the_folder(served, route):
    for name in NAMES:
        status, body = ask(served, route, plan=name)
        assert 400 <= status < 500, (name, status, body[:200])
        sentence = json.loads(body)["error"]
        assert len(sentence) < 600 and SECRET not in sentence
        assert str(served.base) not in sentence, name
    raw = ["plan=%2e%2e%2fx", "plan=%00", "plan=%ff%fe", "plan", "", "plan=a&plan=b", "plan[]=x"]
    for query in [*raw, "plan=" + "%2e%2e%2f" * 200 + "etc%2fpasswd"]:
        status, _ = ask(served, route, raw=query)
        assert 400 <= status < 500, query
    assert ask(served, "plan", plan=NAME)[0] == 200  # and it is still there


def test_survives_damaged_plans(served):
    """Bytes of a real plan changed at random: refused or served, but answered."""
    good = (served.plans / "sub" / "small.safetensors").read_bytes()
    header = struct.unpack_from("<Q", good)[0]
    path = served.plans / "damaged.safetensors"
    chance = random.Random(0)
    seen = set()
    try:
        for _ in range(40):
            data = bytearray(good)
            for _ in range(chance.choice((1, 4, 64))):
                data[chance.randrange(8, 8 + header)] = chance.randrange(256)
            path.write_bytes(data)
            for route in ("plan", "preview"):
                status, body = ask(served, route, plan=path.name)
                assert status == 200 or 400 <= status < 500
                seen.add(status)
                assert str(served.base).encode() not in body
    finally:
        path.unlink()
    assert 422 in seen
    assert ask(served, "plan", plan=NAME)[0] == 200


def test_follows_a_plan_that_is_written_again(served, small):
    path = served.plans / "again.safetensors"
    try:
        save_plan(small, path)
        assert json.loads(ask(served, "plan", plan=path.name)[1])["layers"] == 3
        save_plan(make_plan((4, 20, 24), 2, 4), path)
        assert json.loads(ask(served, "plan", plan=path.name)[1])["layers"] == 2
    finally:
        path.unlink()


def test_a_layer_of_a_large_plan_takes_under_200_ms(served):
    path = served.plans / "large.safetensors"
    try:
        save_plan(make_plan((21, 45, 80), 40, 40, (64, 128)), path)
        assert ask(served, "plan", plan=path.name)[0] == 200  # reads it and prepares its orders
        times = []
        for layer in (0, 7, 20, 33, 39):
            started = time.perf_counter()
            status, body = ask(served, "preview", plan=path.name, layer=layer, band=layer % 4)
            times.append(time.perf_counter() - started)
            arrays = unpack(body)["arrays"]
            assert status == 200
            assert arrays["mass"].shape == arrays["rank"].shape == (40, 128, 128)
            # Evenly spaced blocks: about as many as there are lie below a density of 0.3.
            share = (arrays["rank"] < 0.3 * 65535).mean()
            assert 0.25 < share < 0.36
        # Other work on the machine must not fail it.
        assert sorted(times)[1] < 0.2, times
    finally:
        path.unlink()
