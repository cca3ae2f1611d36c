"""Pretrained weights come from the package or the hub, or a clear error says how to get them."""

import argparse
import hashlib
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import vimlrp
from vimlrp.errors import CheckpointError, InputError

HUB = {"hf_hub_id": "someone/vim", "hf_hub_filename": "vim.pth"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return timm.create_model("test_vim", **changes)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def pretrained(**overlay):
    return timm.create_model("test_vim", pretrained=True, pretrained_cfg_overlay=overlay)


class Hub(ThreadingHTTPServer):
    """A Hugging Face hub on this machine, as far as one file in one repository goes."""

    def __init__(self, folder, status):
        super().__init__(("127.0.0.1", 0), Files)
        self.folder, self.status, self.asked = folder, status, []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Files(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        self.server.asked.append(self.path)
        file = self.server.folder / self.path.rpartition("/")[2]
        known = self.path == f"/someone/vim/resolve/main/{file.name}" and file.is_file()
        content = file.read_bytes() if known else b""
        self.send_response(self.server.status if known or self.server.status != 200 else 404)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Start a hub with the given status; its files lie in `tmp_path`, its cache is a fresh one."""
    servers = []

    def hub(status=200):
        server = Hub(tmp_path, status)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        return server

    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


def official(model, average):
    return {
        "model": model.state_dict(),
        "model_ema": average.state_dict(),
        "args": argparse.Namespace(model="vim"),
    }


def test_published_weights_come_from_the_hub_and_stay_in_its_cache(hub, tmp_path):
    server, source = hub(), make(1)
    torch.save(official(source, make(2)), tmp_path / "vim.pth")
    model = pretrained(**HUB)
    assert same(model, source)
    asked = len(server.asked)
    assert asked > 0
    assert same(pretrained(**HUB), source)
    assert len(server.asked) == asked
    assert "state_dict" not in model.pretrained_cfg
    assert model.pretrained_cfg["hf_hub_id"] == "someone/vim"


def test_cached_weights_need_no_hub(hub, tmp_path):
    server, source = hub(), make(1)
    torch.save(official(source, make(2)), tmp_path / "vim.pth")
    pretrained(**HUB)
    server.status = 503
    assert same(pretrained(**HUB), source)


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_hub_that_refuses_is_asked_once(hub, status):
    server, start = hub(status), time.perf_counter()
    with pytest.raises(CheckpointError, match=r"cannot get vim.pth from someone/vim") as caught:
        pretrained(**HUB)
    assert time.perf_counter() - start < 5
    assert len(server.asked) == 1
    assert f"{server.address}/someone/vim/resolve/main/vim.pth" in str(caught.value)
    assert "vimlrp.load_checkpoint(model, 'vim.pth')" in str(caught.value)


def test_damaged_file_from_the_hub(hub, tmp_path):
    hub()
    (tmp_path / "vim.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match=r"vim\.pth is damaged or cut short"):
        pretrained(**HUB)


def test_without_a_network_it_fails_in_seconds(tmp_path):
    """The published name, a fresh process and the real client; the port is a closed one."""
    code = (
        "import time, timm, vimlrp\n"
        "start = time.perf_counter()\n"
        "try:\n    timm.create_model('vim_tiny_patch16_224', pretrained=True)\n"
        "except vimlrp.VimLRPError as error:\n    print(time.perf_counter() - start, error)\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seconds, _, message = done.stdout.partition(" ")
    assert float(seconds) < 15
    name = "vim_t_midclstok_76p1acc.pth"
    assert f"cannot get {name} from hustvl/Vim-tiny-midclstok on Hugging Face" in message
    assert f"vimlrp.load_checkpoint(model, '{name}')" in message


@pytest.mark.parametrize("name", ["own.pth", "own.safetensors"])
def test_weights_from_a_file(tmp_path, name):
    source, path = make(1), tmp_path / name
    if path.suffix == ".pth":
        torch.save(official(source, make(2)), path)
    else:
        save_file(source.half().state_dict(), path)
        source.float()
    assert same(pretrained(file=str(path)), source)


def test_another_number_of_classes_gets_a_fresh_head(tmp_path):
    source, path = make(1), tmp_path / "own.pth"
    torch.save(source.state_dict(), path)
    overlay = {"file": str(path)}
    model = timm.create_model(
        "test_vim", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3
    )
    assert model.head.weight.shape == (3, 32)
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_grey_input_sums_the_colours_and_another_size_interpolates(tmp_path):
    source, path = make(1), tmp_path / "own.pth"
    torch.save(source.state_dict(), path)
    model = timm.create_model(
        "test_vim",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        in_chans=1,
        img_size=96,
    )
    summed = source.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj.weight, summed)
    assert model.pos_embed.shape == (1, 37, 32)
    assert torch.equal(model.pos_embed[:, 18], source.pos_embed[:, 8])


def test_file_of_another_architecture(tmp_path):
    path = tmp_path / "own.pth"
    torch.save(make(depth=2).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"own\.pth does not fit test_vim; .*load_checkpoint"):
        pretrained(file=str(path))


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*own\.pth"):
        pretrained(file=str(tmp_path / "own.pth"))


def test_model_without_published_weights():
    with pytest.raises(CheckpointError, match=r"no pretrained weights for test_vim: .*load_check"):
        timm.create_model("test_vim", pretrained=True)


def test_bundled_weights_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("vimlrp.models.builder.bundled_path", lambda name: str(tmp_path / name))
    with pytest.raises(CheckpointError, match=r"belong to the package, but .*install vimlrp again"):
        pretrained(file=str(tmp_path / "gone.safetensors"))


@pytest.mark.parametrize("name", ["vim_nano_patch16_224", "vmamba_nano_s1l8_224"])
def test_bundled_weights_load_without_a_hub(hub, name):
    server = hub(503)
    model = timm.create_model(f"{name}.imagenette", pretrained=True)
    file = Path(model.pretrained_cfg["file"])
    stored = load_file(file)
    assert server.asked == []
    assert file.stat().st_size <= 8e6
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert all(torch.equal(value, stored[key].float()) for key, value in model.state_dict().items())


def test_without_pretrained_nothing_is_read(hub):
    server = hub(503)
    timm.create_model("vim_nano_patch16_224")
    assert server.asked == []


def test_names_of_classes():
    assert vimlrp.models.class_names(make(num_classes=1000))[207] == "golden retriever"
    assert vimlrp.models.class_names(make(num_classes=7)) is None
    nano = timm.create_model("vim_nano_patch16_224", pretrained=True)
    with torch.device("meta"):
        wide = timm.create_model("vim_nano_patch16_224", num_classes=1000)
    names = vimlrp.models.class_names(nano)
    assert (len(names), names[4]) == (10, "church")
    assert vimlrp.models.class_names(wide) is None
    nano.reset_classifier(10)
    assert vimlrp.models.class_names(nano) is None


def test_a_fresh_classifier_of_the_same_size_has_no_names():
    model = timm.create_model("vim_nano_patch16_224", num_classes=10, depth=1)
    assert vimlrp.models.class_names(model) is None


def test_names_that_were_given_come_first_and_fit_the_number_of_classes():
    model = timm.create_model("vim_nano_patch16_224", num_classes=3, depth=1)
    vimlrp.models.name_classes(model, ["ant", "bass", "brain"])
    assert vimlrp.models.class_names(model) == ("ant", "bass", "brain")
    model.reset_classifier(2)
    assert vimlrp.models.class_names(model) is None
    for names, message in (
        (["ant"], "1 class names were given for a model of 2 classes"),
        (["ant", "Ant "], "'ant' was given 2 times"),
        (["ant", " "], "is empty"),
    ):
        with pytest.raises(InputError, match=message):
            vimlrp.models.name_classes(model, names)
