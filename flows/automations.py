"""`python -m flows.automations`: what a Prefect server does by itself for prefloop's runs.

Made through Prefect's API; again changes nothing, and what somebody switched off stays off:

- a flow run whose heartbeats stopped is marked as crashed, so that its place is free again;
- a failed or crashed run is told to a webhook, where one is named;
- an event that says that a batch was labelled, or data changed, starts the deployment `data-changed`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from flows.settings import SKIPPED
from prefloop.errors import ConfigError, PrefloopError, WorkspaceError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DEPLOYMENT = "prefloop-run/data-changed"
WEBHOOK_URL = "PREFLOOP_WEBHOOK_URL"
WEBHOOK_BLOCK = "prefloop-failed-runs"
SILENCE = timedelta(seconds=600)
"""Three heartbeats of a flow run and a minute, at Prefect's default of one in 180 s."""
LABELLED = "prefloop.batch.labelled"
CHANGED = "prefloop.data.changed"
HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", SKIPPED, "Cached", "RolledBack", "Failed", "TimedOut", "Cancelled", "Crashed")
ENDS = {f"prefect.flow-run.{state}" for state in _ENDS}
# Whatever a name or message holds, the payload stays JSON.
PAYLOAD = (
    '{"run": {{ flow_run.name | tojson }}, "flow": {{ flow.name | tojson }}, '
    '"state": {{ flow_run.state.name | tojson }}, "message": {{ flow_run.state.message | tojson }}, '
    '"page": {{ flow_run | ui_url | tojson }}}'
)


def zombies(silence: timedelta = SILENCE) -> AutomationCore:
    """Marks a flow run as crashed when neither a heartbeat nor its end came for a while after a heartbeat."""
    return AutomationCore(
        name="prefloop zombie runs",
        description="A flow run that sends no heartbeat any more is marked as crashed.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDS},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                force=False,
                state=StateType.CRASHED,
                message=f"no heartbeat for {silence.total_seconds():.0f} s: its worker is gone or cut off",
            )
        ],
    )


def failed_runs(webhook: UUID) -> AutomationCore:
    """Tells a webhook of each flow run of prefloop's that failed or crashed.

    Args:
        webhook: id of the block document with its URL.
    """
    return AutomationCore(
        name="prefloop failed runs",
        description="Each failed or crashed flow run is told to a webhook.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in ("Failed", "TimedOut", "Crashed")},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "prefloop*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=PAYLOAD)],
    )


def labelled_batch(deployment: UUID) -> AutomationCore:
    """Starts the deployment `data-changed` when an event says that data changed."""
    return AutomationCore(
        name="prefloop labelled batch",
        description=f"The events {LABELLED} and {CHANGED} start {DEPLOYMENT}.",
        trigger=EventTrigger(
            expect={LABELLED, CHANGED}, posture=Posture.Reactive, threshold=1, within=timedelta(0)
        ),
        actions=[
            RunDeployment(source="selected", deployment_id=deployment, parameters=None, job_variables=None)
        ],
    )


def install(client: SyncPrefectClient, url: str = "", silence: timedelta = SILENCE) -> Iterator[str]:
    """Makes the automations, or brings those that are there up to date; yields what was done, a line each.

    Args:
        url: webhook that is told of failed runs; empty leaves that automation as it is.

    Raises:
        WorkspaceError: the server lacks the deployment that a labelled batch starts.
    """
    yield put(client, zombies(silence))
    if url:
        yield put(client, failed_runs(save_webhook(client, url)))
    else:
        yield f"prefloop failed runs: left as it is, {WEBHOOK_URL} names no webhook"
    try:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound as error:
        raise WorkspaceError(
            f"the Prefect server has no deployment {DEPLOYMENT}",
            "prefect --no-prompt deploy --prefect-file infra/prefect.yaml --all",
        ) from error
    yield put(client, labelled_batch(deployment.id))


def put(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Makes one automation, or changes the one of its name where it differs; says which."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return f"{wanted.name}: made"
    for surplus in found[1:]:  # two that were made at the same moment
        client.delete_automation(surplus.id)
    wanted = wanted.model_copy(update={"enabled": found[0].enabled})
    if _content(found[0]) == _content(wanted):
        return f"{wanted.name}: unchanged"
    # Only what counts as set is sent: all of it, but for what the server keeps to itself.
    whole = AutomationCore.model_validate(wanted.model_dump(exclude={"owner_resource"}))
    client.update_automation(found[0].id, whole)
    return f"{wanted.name}: brought up to date"


def save_webhook(client: SyncPrefectClient, url: str) -> UUID:
    """Keeps the URL in a block, where Prefect encrypts it; returns the block document's id.

    Raises:
        ConfigError: it is no URL of a web server.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"{WEBHOOK_URL} is no http or https URL", "https://chat.example.org/hooks/...")
    webhook: Webhook = Webhook(method="POST", url=SecretStr(url))
    return UUID(str(webhook.save(WEBHOOK_BLOCK, overwrite=True, client=None)))


def webhook_url() -> str:
    """The webhook that the environment names, itself or as a file; empty where none is named.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = os.environ.get(f"{WEBHOOK_URL}_FILE", "")
    if not file:
        return os.environ.get(WEBHOOK_URL, "").strip()
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{WEBHOOK_URL}_FILE: {error}", "name a file that holds the URL alone") from error


def _content(automation: AutomationCore) -> object:
    """What an automation says, without its id and the ids and times that the server adds."""
    values = automation.model_dump(mode="json", include=set(AutomationCore.model_fields))

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items() if name != "id"}
        if isinstance(value, list):  # events stand in sets, which have no order
            return sorted(
                (plain(inner) for inner in value), key=lambda inner: json.dumps(inner, sort_keys=True)
            )
        return value

    return plain(values)


def main() -> None:
    """Makes them on the server that PREFECT_API_URL names.

    Raises:
        ConfigError: PREFECT_API_URL is not set.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError("PREFECT_API_URL is not set", "PREFECT_API_URL=http://127.0.0.1:4200/api")
    with get_client(sync_client=True) as client:
        for line in install(client, webhook_url()):
            print(line)


if __name__ == "__main__":
    try:
        main()
    except PrefloopError as error:
        print(f"flows.automations: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
