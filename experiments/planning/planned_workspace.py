"""A workspace whose devices and transformer are not there: settings as a run reads them, shapes in place of weights."""

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from experiments.planning import hardware
from experiments.planning.hardware import Hardware
from experiments.runner.cli import Config, freeze
from experiments.runner.workspace import Workspace
from pref_jax.download import fetch
from pref_jax.files import write_json
from pref_jax.lm import hf_write
from pref_jax.lm.config import LMConfig
from pref_jax.lm.text_model import TextModel, TextSettings
from pref_jax.mesh import make_mesh

# config.json of public bases as their pages show them, so that a plan needs neither a connection nor a licence.
BASES = Path(__file__).with_name("bases.json")


@dataclasses.dataclass(frozen=True)
class PlannedWorkspace(Workspace):
    """A workspace on a machine of `experiments.planning.hardware`."""

    machine: Hardware | None = None

    @cached_property
    def mesh(self) -> Mesh:
        """The machine's devices, cut as the config says."""
        assert self.machine is not None, "`open_planned` gives it"
        return make_mesh(**self.config.mesh.to_dict(), devices=hardware.devices(self.machine))

    @cached_property
    def text(self) -> TextModel:
        """The transformer's sizes; it has no weights."""
        section = self.config.backbone.to_dict()
        name, batch_size, packing = (section.pop(key) for key in ("name", "batch_size", "packing"))
        settings = freeze(TextSettings, section, "backbone")
        folder = self._config_folder(name)
        return TextModel(name=str(folder), settings=settings, mesh=self.mesh, batch_size=batch_size, packing=packing)

    def _config_folder(self, name: str) -> Path:
        """A folder with the base's config.json alone."""
        known = json.loads(BASES.read_text())
        folder = self.folder / "base"
        if name == "pretrain":
            lm = freeze(LMConfig, self.config.pretrain.lm, "pretrain.lm")
            write_json(folder / "config.json", hf_write.write(lm))
        elif name in known:
            write_json(folder / "config.json", known[name])
        elif Path(name).is_dir():
            return Path(name)
        else:
            give = "give the folder of a checkpoint, or one of " + ", ".join(known)
            return fetch(name, ("config.json",), revision=None, check="the path", give=give)
        return folder


def open_planned(config: Config, machine: Hardware, folder: Path) -> Any:
    """The workspace of a config on a machine; the folder gets the base's config.json."""
    return PlannedWorkspace(config, 0, folder, machine)
