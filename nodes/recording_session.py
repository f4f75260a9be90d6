"""What stands in front of the host's attention after Record PARO: ordinary runs, recorded.

A run is the user's own, so nothing here may stop or change it: whatever cannot be recorded is said
on the node and does not count.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..calibration import (
    ModelIdentity,
    Plan,
    PlanError,
    Recorder,
    TokenGrid,
    read_description,
    save_plan,
)
from ..calibration.noise_bands import checked_schedule
from ..calibration.recording_state import RecordingError, save_recording
from .attention_call import VisualCall
from .input_digest import digest
from .model_identity import weight_distance
from .recording import RECORDED, RecordingHandler, recorder_for
from .unfinished import find_unfinished, go_on, partial_path

logger = logging.getLogger("paro_attention")

NOT_RECORDED = "run not recorded"


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """How a plan is made from ordinary runs.

    Attributes:
        runs: runs that make a plan, at least 2.
        density: at which orders are chosen and tails are fitted.
        noise_bands: number of bands over the steps.
        orders: "tiles", "axes" or "fhw".
        choice: how the order of a head is chosen.
    """

    runs: int
    density: float
    noise_bands: int
    orders: str
    choice: str


class RecordingSession:
    """Records one run after the other into the file beside the plan, and at last makes the plan.

    Between runs everything lies in that file: the next run may be made after a restart.

    Args:
        plan: where the plan is to be written.
        identity: of the model.
        inputs: what of the model decides about what is recorded, by name.
        settings: see there.
        resume: go on with runs that are there already.
        node_id: for the counters.
        tell: (text, logging level) -> shows a line of text to the user.
        check_interrupt: raises where the user stopped the run.
    """

    def __init__(
        self,
        plan: Path,
        identity: ModelIdentity,
        inputs: dict[str, str],
        settings: RecordingSettings,
        *,
        resume: bool = True,
        node_id: str | None = None,
        tell: Callable[[str, int], None] = lambda text, level: logger.log(level, "PARO: %s", text),
        check_interrupt: Callable[[], None] = lambda: None,
    ):
        self._plan = plan
        self._partial = partial_path(plan)
        self._identity = identity
        self._settings = settings
        self._inputs = inputs | {name: str(value) for name, value in asdict(settings).items()}
        made = digest(inputs["model"], asdict(settings))
        self._note = f"{settings.runs} ordinary runs, recording {made}"
        self._resume = resume
        self._node_id = node_id
        self._tell = tell
        self._check_interrupt = check_interrupt
        self._clear()

    def begin_run(self, sigmas: list[float], model: Any) -> None:
        """Look up what is there, and whether this run belongs to it."""
        self._clear()
        try:
            self._schedule = checked_schedule(sigmas, "noise levels")
            self._find(model.load_device)
        except Exception as error:  # too little memory for what was kept, for one
            self._handler.recorder = None
            self._refuse(_reason(error))
            logger.debug("the recording's error", exc_info=True)
        if not self._problem and not self._complete and not self._ready():
            number = f"run {self._runs + 1} of {self._runs_needed()}"
            self._tell(f"records {number} of {self._plan.name}", logging.INFO)
        self._handler.begin_run(sigmas, model)

    def end_run(self, failed: bool) -> None:
        """Count the run, keep what it gave, and make the plan once all are there."""
        self._handler.end_run(failed)
        try:
            if self._problem:
                count = f"{self._runs} of {self._runs_needed()} runs recorded so far"
                self._tell(f"{self._problem}; {count}", logging.WARNING)
            elif self._complete:
                self._tell(
                    f"{self._plan.name} is complete, nothing more is recorded; another name, or "
                    "resume off, records again",
                    logging.INFO,
                )
            elif failed:
                count = f"{self._runs} of {self._runs_needed()} recorded"
                self._tell(f"a run that is stopped does not count: {count}", logging.INFO)
            else:
                self._count()
        except Exception as error:  # the sampler's result is there: it must not be lost
            self._tell(f"not recorded: {_reason(error)}", logging.WARNING)
            logger.debug("the recording's error", exc_info=True)
        finally:
            self._clear()  # gigabytes, for long videos

    def begin_forward(self) -> None:
        """Count a forward."""
        self._handler.begin_forward()

    def cannot_serve(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Everything can be recorded."""
        return None

    def attend(self, call: VisualCall) -> str:
        """Record the call; it always runs dense."""
        if self._problem or self._complete or self._ready():
            return NOT_RECORDED
        self._check_interrupt()
        recorder = self._handler.recorder
        if recorder is not None and call.grid != recorder.grid.shape:
            self._refuse(
                f"its grid of {TokenGrid(*call.grid)} tokens is not the {recorder.grid} of the "
                "recording; sample at that size, or give another name"
            )
            return NOT_RECORDED
        try:
            answer = self._handler.attend(call)
        except Exception as error:  # out of memory too: the run itself may still have enough
            self._handler.recorder = None
            self._refuse(_reason(error))
            logger.debug("the recording's error", exc_info=True)
            return NOT_RECORDED
        if answer == RECORDED:
            band = self._handler.recorded().bands.band_of(call.sigma)
            self._seen.add((call.layer, band))
        return answer

    def declined(self, reason: str) -> None:
        """Count a call."""
        self._handler.declined(reason)

    def _clear(self) -> None:
        self._schedule: tuple[float, ...] = ()
        self._runs = 0
        self._problem = ""
        self._complete = False
        self._seen: set[tuple[int, int]] = set()
        self._handler = RecordingHandler(self._node_id, self._make_recorder, [])

    def _refuse(self, reason: str) -> None:
        self._problem = f"not recorded: {reason}"

    def _make_recorder(self, grid: TokenGrid) -> Recorder:
        settings = self._settings
        return recorder_for(
            self._identity, grid, self._schedule, density=settings.density,
            noise_bands=settings.noise_bands, orders=settings.orders, choice=settings.choice,
            prompts=settings.runs,
        )  # fmt: skip

    def _runs_needed(self) -> int:
        """Runs that make the plan; the recorder, once it is there, knows."""
        recorder = self._handler.recorder
        return self._settings.runs if recorder is None else recorder.runs_needed

    def _ready(self) -> bool:
        """All runs are there, but the plan could not be written."""
        return self._runs == self._runs_needed()

    def _find(self, device: torch.device) -> None:
        if not self._resume:
            return
        if self._is_complete():
            self._complete = True
            return
        try:
            saved = find_unfinished(self._partial, self._inputs)
            if saved is None:
                return
            self._runs = saved.runs
            if saved.schedule != self._schedule:
                self._refuse(
                    f"its {len(self._schedule)} steps are not those of the recording; sample with "
                    "the same steps, scheduler and shift, or give another name"
                )
                return
            recorder, _ = go_on(saved, self._make_recorder, device)
        except RecordingError as error:
            self._runs = 0
            self._tell(f"starts over: {error}", logging.INFO)
            return
        self._handler.recorder = recorder
        if saved.runs < recorder.runs_needed:
            recorder.begin_prompt(saved.runs)

    def _is_complete(self) -> bool:
        """Whether the plan was made from this model and these settings already."""
        try:
            found = read_description(self._plan)
            weights = str(found["identity"]["weights"])
            return found["made_from"]["note"] == self._note and not weight_distance(
                weights, self._identity.weights
            )
        except (PlanError, KeyError, TypeError):
            return False

    def _count(self) -> None:
        recorder = self._handler.recorded()
        if not self._ready():
            wanted = recorder.layers * recorder.bands.count
            if len(self._seen) < wanted:
                raise ValueError(
                    f"only {len(self._seen)} of {wanted} layers and noise bands were seen in this "
                    "run: its sampler leaves out steps, or part of it ran another attention"
                )
            self._runs += 1
            if self._runs < recorder.runs_needed:
                recorder.begin_prompt(self._runs)  # says now if orders cannot be chosen
            save_recording(self._partial, recorder, self._runs, self._inputs)
            self._resume = True
        if not self._ready():
            self._tell(f"run {self._runs} of {recorder.runs_needed} recorded", logging.INFO)
            return
        self._tell("recording: choosing token orders and fitting tails", logging.INFO)
        plan = recorder.finish(self._identity, note=self._note)
        self._write(plan)

    def _write(self, plan: Plan) -> None:
        save_plan(plan, self._plan)
        self._partial.unlink(missing_ok=True)
        self._tell(
            f"wrote {self._plan.name} from {self._runs} runs, grid {plan.grid}: put Load PARO in "
            "place of this node",
            logging.INFO,
        )


def _reason(error: Exception) -> str:
    """What is wrong, in a sentence where there is one: some errors have no text of their own."""
    if str(error) and isinstance(error, (ValueError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")
