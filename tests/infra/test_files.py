"""The files of infra/ against their schemas, and what they promise: no secret, loopback, least privilege."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.infra.conftest import INFRA, REPOSITORY

COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OBJECTS = [
    item
    for path in sorted((INFRA / "kubernetes").glob("*.yaml"))
    for item in yaml.safe_load_all(path.read_text())
]
POOL = json.loads((INFRA / "kubernetes/gpu-pool.json").read_text())
SCRIPTS = [path for path in INFRA.rglob("*") if path.suffix in (".sh", ".sbatch")]
KUBERNETES = "1.37"
SERVICE_KEYS = {
    "build", "cap_add", "cap_drop", "command", "configs", "container_name", "cpus", "deploy", "depends_on",
    "entrypoint", "env_file", "environment", "expose", "extends", "extra_hosts", "gpus", "healthcheck",
    "hostname", "image", "init", "labels", "logging", "mem_limit", "network_mode", "networks", "pids_limit",
    "ports", "privileged", "profiles", "pull_policy", "read_only", "restart", "runtime", "secrets",
    "security_opt", "shm_size", "stop_grace_period", "stop_signal", "tmpfs", "ulimits", "user", "volumes",
    "working_dir",
}  # fmt: skip
"""Of the compose specification's, those that such a file may need."""


def check_kubernetes(value: dict[str, Any]) -> None:
    kubernetes_validate.validate(value, KUBERNETES, strict=True)


def filled(value: Any, variables: dict[str, Any]) -> Any:
    """A job template with its variables in place, as Prefect fills it."""
    if isinstance(value, dict):
        return {name: filled(inner, variables) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, variables) for inner in value]
    found = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
    return variables[found[1]] if found else value


def test_the_compose_file_says_what_compose_knows_and_names_what_it_has():
    assert set(COMPOSE) <= {"name", "services", "volumes", "networks", "secrets", "configs"} | {
        key for key in COMPOSE if key.startswith("x-")
    }
    for name, service in SERVICES.items():
        assert set(service) <= SERVICE_KEYS, name
        assert "image" in service or "build" in service, name
        assert set(service.get("depends_on", ())) <= set(SERVICES), name
        for kind in ("secrets", "networks"):
            named = {entry["source"] if isinstance(entry, dict) else entry for entry in service.get(kind, ())}
            assert named <= set(COMPOSE.get(kind, {})), name
        volumes = {str(v).split(":")[0] for v in service.get("volumes", ()) if not isinstance(v, dict)}
        assert {v for v in volumes if re.fullmatch(r"[a-z][a-z0-9_-]*", v)} <= set(COMPOSE["volumes"]), name


def test_the_compose_file_is_one_for_docker():
    asked = ["docker", "compose", "version"]
    if not shutil.which("docker") or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not here")
    command = [
        "docker",
        "compose",
        "-f",
        str(INFRA / "compose.yaml"),
        "config",
        "--quiet",
        "--no-interpolate",
    ]
    assert subprocess.run(command, check=False).returncode == 0


def test_every_published_port_is_on_loopback_unless_the_operator_says_otherwise():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("${PREFLOOP_BIND:-127.0.0.1}:") for port in published), published
    assert not [name for name, service in SERVICES.items() if service.get("network_mode") == "host"]
    settings = (INFRA / ".env.example").read_text().splitlines()
    assert "PREFLOOP_BIND=127.0.0.1" in settings


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_has_the_least_it_needs(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert not [volume for volume in service.get("volumes", []) if "docker.sock" in volume]
    assert service["user"].split(":")[0] != "0" or (name, service["network_mode"]) == ("volumes", "none")
    lasts = name not in ("volumes", "buckets", "setup")
    assert not lasts or service["restart"] == "unless-stopped"
    waited_for = {other for item in SERVICES.values() for other in item.get("depends_on", {})} & set(SERVICES)
    assert not lasts or name not in waited_for or "healthcheck" in service
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])


def test_workers_reach_neither_databases_nor_other_buckets_nor_the_administrators_password():
    exchange = {"s3_exchange_key", "s3_exchange_secret"}
    for name in ("coordinator", "worker-cpu", "worker-gpu"):
        assert SERVICES[name]["networks"] == ["work", "storage"]
        assert set(SERVICES[name]["secrets"]) == {"prefect_auth", "mlflow_worker_password", *exchange}
        assert SERVICES[name]["environment"]["PREFLOOP_REMOTE"] == "s3://exchange/prefloop"
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == COMPOSE["networks"]["storage"] == {"internal": True}


def test_each_secret_that_is_mounted_is_made_and_used(tmp_path):
    for _ in range(2):
        subprocess.run(["bash", str(INFRA / "secrets.sh"), str(tmp_path / "secrets")], check=True)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} <= set(made)
    reached = {
        identity["name"]: {action.partition(":")[2] for action in identity["actions"]}
        for identity in json.loads(made["s3.json"])["identities"]
    }
    assert reached == {"mlflow": {"mlflow"}, "data": {"data"}, "exchange": {"exchange"}}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    before = dict(made)
    subprocess.run(["bash", str(INFRA / "secrets.sh"), str(tmp_path / "secrets")], check=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == before
    passwords = [text for name, text in made.items() if name.endswith(("password", "key", "secret"))]
    assert len(set(passwords)) == len(passwords) >= 10
    assert all(re.fullmatch(r"[0-9a-f]{48}", text) for text in passwords)
    json.loads(made["s3.json"])
    text = (INFRA / "compose.yaml").read_text()
    for name in set(re.findall(r"/run/secrets/([\w.]+)", text)):
        users = [item for item in SERVICES.values() if f"/run/secrets/{name}" in json.dumps(item)]
        assert users
        assert all(name in item["secrets"] for item in users), f"{name} is read where it is not mounted"


def test_no_file_holds_a_secret():
    assigned = re.compile(
        r"(?i)(password|secret|token|auth_string|_key)\w*[\"']?\s*[=:]\s*[\"']?([^\s\"'$]+)"
    )
    # Names of files, variables of shells, of psql and of templates, and switches.
    allowed = re.compile(
        r"/run/secrets/|\{|\[|\./secrets/|prefloop-worker|MLFLOW_|PREFECT_|(prefect|mlflow|:|false)$|-\}"
    )

    def holds_one(line: str) -> bool:
        found = assigned.search(line.split("#")[0])
        return bool(found and not allowed.match(found[2]))

    assert holds_one("POSTGRES_PASSWORD: hunter2")
    assert holds_one("export AWS_SECRET_ACCESS_KEY='abc'")
    wrong = []
    for path in INFRA.rglob("*"):
        if path.is_dir() or "secrets" in path.relative_to(INFRA).parts[:1] or path.suffix in (".py", ".json"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if holds_one(line):
                wrong.append(f"{path.name}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)
    ignored = (INFRA / ".gitignore").read_text().splitlines()
    assert {"/secrets/", "/tls/", "/.env"} <= set(ignored)
    assert "infra/secrets" in (INFRA / "Containerfile.dockerignore").read_text().splitlines()


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: f"{value['kind']}-{value['metadata']['name']}")
def test_each_kubernetes_object_is_one(value):
    check_kubernetes(value)
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes({**value, "sepc": {}})


def test_the_pools_job_is_one_and_all_its_variables_are_declared():
    properties = POOL["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(POOL["job_configuration"])))
    assert used <= set(properties)
    given = {name: item["default"] for name, item in properties.items() if "default" in item}
    worker = {
        "name": "sft",
        "labels": {"prefect.io/flow-run-id": "x"},
        "command": ["prefect", "flow-run", "execute"],
    }
    job = filled(POOL["job_configuration"]["job_manifest"], {**given, **worker})
    job["spec"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": name, "value": value} for name, value in given["env"].items()
    ]  # as Prefect's worker turns them
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "1"
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] = "1"
    check_kubernetes(job)
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert {item["name"] for item in pod["containers"][0]["volumeMounts"]} == {
        v["name"] for v in pod["volumes"]
    }


@pytest.mark.slow
def test_a_prefect_server_takes_the_gpu_pool(server):
    command = [
        "-m",
        "prefect",
        "--no-prompt",
        "work-pool",
        "create",
        "kubernetes-gpu",
        "--type",
        "kubernetes",
    ]
    template = str(INFRA / "kubernetes/gpu-pool.json")
    python = server.variables["PYTHON"]
    assert "Created work pool" in server.run(python, *command, "--base-job-template", template)
    server.run(python, "-m", "prefect", "--no-prompt", "work-pool", "delete", "kubernetes-gpu")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_one(script):
    subprocess.run(["sh" if script.name == "entrypoint.sh" else "bash", "-n", str(script)], check=True)
    assert re.search(r"^set -eu(o pipefail)?$", script.read_text(), flags=re.MULTILINE)
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "--severity=warning", str(script)], capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stdout


def test_the_front_ends_tls(tmp_path):
    text = (INFRA / "compose/Caddyfile").read_text()
    addresses = re.findall(r"^(\S+) \{$", text, flags=re.MULTILINE)
    assert all(address.startswith(("https://", "(")) for address in addresses if address != "{")
    assert text.count("import safe") == text.count("https://{")
    if caddy := shutil.which("caddy"):
        command = [caddy, "validate", "--adapter", "caddyfile", "--config", str(INFRA / "compose/Caddyfile")]
        done = subprocess.run(
            command, env={"HOME": str(tmp_path), "PATH": "/bin"}, capture_output=True, text=True, check=False
        )
        assert "Valid configuration" in done.stdout + done.stderr, done.stderr


def test_an_image_holds_no_more_than_it_is_built_from():
    text = (INFRA / "Containerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert all((REPOSITORY / source).exists() for source in sources)
    let_in = {
        line[1:]
        for line in (INFRA / "Containerfile.dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    assert sources == let_in
    assert text.index("USER 10001") < text.index("ENTRYPOINT")
