"""Your own network from the options --model, --model-args and --state, or from a recipe that the user gives."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from nbsnn.errors import ConfigError, shown
from nbsnn.importers.states import load_state_
from nbsnn.models.own import check_own_name, is_in, own_network
from nbsnn.recipe import ModelSpec, Recipe


class Own(NamedTuple):
    """The options --model, --model-args and --state; a function that a file names is run only if `name` is that function."""

    name: str | None = None
    args: str | None = None
    state: Path | None = None

    def network(self, known: ModelSpec | None = None, *, seed: int = 0, folder: Path = Path()) -> nn.Module | None:
        """The float network, or None without --model.

        Args:
            known: what a checkpoint or a recipe records; its arguments are used unless --model-args gives others.
            seed: of its fresh weights.
            folder: where its module is looked for first.
        Raises:
            ConfigError: an option without --model, arguments that are no JSON, or a function that cannot be called.
            CheckpointError: the state dict does not fit.
        """
        self.check()
        if self.name is None:
            return None
        spec = ModelSpec(self.name, args=self.arguments(known.args if known else {}))
        check_own_name(self.name)
        torch.manual_seed(seed)
        network = own_network(spec.name, spec.args, folder=folder)
        network.model_spec = spec  # type: ignore[assignment]  # checkpoints record it
        return network if self.state is None else load_state_(network, self.state)

    def check(self) -> None:
        """Raise an error for an option that needs --model, without it."""
        for option, value in (("--model-args", self.args), ("--state", self.state)):
            if value is not None and self.name is None:
                raise ConfigError(f"{option} is for your own network; add --model MODULE:FUNCTION")

    def made(self) -> nn.Module:
        """The float network; raises an error without --model."""
        network = self.network()
        if network is None:
            raise ConfigError("name a checkpoint, or your own network with --model MODULE:FUNCTION")
        return network

    def arguments(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """--model-args as keyword arguments, or the known ones."""
        if self.args is None:
            return dict(known)
        try:
            value = json.loads(self.args)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ConfigError(f"--model-args {shown(self.args)}: must be a JSON object, such as '{{\"num_classes\": 10}}'")
        return value


def run_network(recipe: Recipe, own: Own) -> tuple[Recipe, nn.Module | None]:
    """The recipe of a run with its own network, if it has one: that of --model, or else the one that the recipe names.

    A recipe is given by the user, as a script is. So the function that it names is called if its module lies beside it or in
    the working directory; one of an installed package must be named by --model as well.
    """
    spec, home = recipe.model, Path()
    if own.name is None and spec.is_own:
        check_own_name(spec.name)
        places = [place for place in (Path(recipe.name).parent, Path()) if is_in(place, spec.name)]
        if not places:
            raise ConfigError(
                f"{recipe.name}: its network is made by {spec.name}, which is neither beside the recipe nor in this folder; "
                f"to run code from elsewhere, add --model {spec.name}"
            )
        own, home = own._replace(name=spec.name), places[0]
    network = own.network(spec, seed=recipe.seed, folder=home)
    if network is None:
        return recipe, None
    made: Any = network.model_spec
    return replace(recipe, model=replace(spec, name=made.name, args=made.args)), network
