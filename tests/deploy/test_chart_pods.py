"""The pods that the Helm chart makes, and what it gives to pods of vLLM."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from moescope.service.auth.tokens import MIN_LENGTH, read_tokens
from moescope.service.cli.commands import command_line
from tests.deploy.chart import (
    CHART,
    ROOT,
    VALUES,
    documents,
    of_kind,
    pod,
    render,
    service_of,
    service_pods,
    templates,
    vllm_pod,
)

NAMES = [path.stem for path in VALUES]


def test_pods_are_hardened_and_mounts_have_volumes() -> None:
    found = service_pods()
    assert len(found) == 9  # all but `sidecar`, which brings what is around it
    for name, spec in found:
        container = service_of(spec)
        security = container["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        if container in spec["containers"]:  # a pod of its own
            assert spec["enableServiceLinks"] is False
            assert spec["automountServiceAccountToken"] is False
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    for name in NAMES:
        for document in documents(name):
            spec = document.get("spec", {}).get("template", {}).get("spec")
            if spec is None:
                continue
            claims = document["spec"].get("volumeClaimTemplates", [])
            volumes = {item["name"] for item in spec["volumes"]}
            volumes |= {item["metadata"]["name"] for item in claims}
            for item in (*spec.get("initContainers", ()), *spec["containers"]):
                assert {mount["name"] for mount in item["volumeMounts"]} <= volumes, (name, item["name"])


def test_no_service_is_open() -> None:
    text = CliRunner(env={"COLUMNS": "200"}).invoke(command_line(), ["serve", "--help"]).output
    for name, spec in service_pods():
        args = service_of(spec)["args"]
        assert args[0] == "serve"
        for flag in args[1:]:
            assert flag.split("=")[0] in text, flag
        assert "--tokens-file=/etc/moescope/tokens.toml" in args
        assert "insecure" not in "".join(templates(name).values())


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_files_of_the_secret(name: str, tmp_path: Path) -> None:
    """The service reads the ConfigMap's file of tokens beside the files that the pod gets of the Secret."""
    (config,) = [item for item in documents(name) if item["metadata"]["name"].endswith("-tokens")]
    (tmp_path / "tokens.toml").write_text(config["data"]["tokens.toml"])
    keys = {entry["file"] for entry in tomllib.loads(config["data"]["tokens.toml"])["tokens"]}
    for key in keys:
        (tmp_path / key).write_text(key * MIN_LENGTH + "\n")
    assert [(token.name, token.scopes) for token in read_tokens(tmp_path / "tokens.toml")] == [
        (scope, {scope}) for scope in (("admin",) if name == "operator" else ()) + ("ingest", "read")
    ]
    for chart, spec in service_pods():
        if chart == name:
            (volume,) = [item for item in spec["volumes"] if item["name"] == "moescope-config"]
            secrets = [item["secret"] for item in volume["projected"]["sources"] if "secret" in item]
            assert {item["path"] for item in secrets[0]["items"]} == keys


def test_vllm_gets_the_ingest_token_only_and_prometheus_the_other() -> None:
    for name in ("example", "sidecar-example", "own-image"):
        spec = vllm_pod(name)
        vllm = spec["containers"][0]
        env = {item["name"]: item.get("value") for item in vllm["env"]}
        (volume,) = [item for item in spec["volumes"] if item["name"] == "moescope-token"]
        assert volume["secret"]["items"] == [{"key": "ingest", "path": "token"}]
        mounts = {item["name"]: item["mountPath"] for item in vllm["volumeMounts"]}
        assert env["MOESCOPE_TOKEN_FILE"] == f"{mounts['moescope-token']}/token"
        assert "moescope-config" not in mounts
        assert env["MOESCOPE"] == "1"
        assert env.get("PYTHONPATH") == mounts.get("moescope-plugin")
        assert (name == "own-image") == ("PYTHONPATH" not in env)
    endpoint = of_kind("operator", "ServiceMonitor")["spec"]["endpoints"][0]
    credentials = endpoint["authorization"]["credentials"]
    assert credentials == {"name": "moescope", "key": "read"}


def test_the_endpoint_is_that_of_the_service() -> None:
    def endpoint(name: str) -> str:
        spec = vllm_pod(name)
        found: str = next(
            item["value"] for item in spec["containers"][0]["env"] if item["name"] == "MOESCOPE_ENDPOINT"
        )
        return found

    assert endpoint("example") == "http://moescope.serving.svc:9890"
    assert endpoint("sidecar-example") == "http://127.0.0.1:9890"
    assert endpoint("tls") == "https://moescope.serving.svc:9890"
    assert endpoint("own-image") == "http://routing.serving.svc:19890"


def test_the_sidecar_starts_before_vllm_and_keeps_its_store_over_restarts() -> None:
    spec = pod("sidecar-example")
    copier, service = spec["initContainers"]
    assert service["restartPolicy"] == "Always"
    assert "restartPolicy" not in copier
    (data,) = [item for item in spec["volumes"] if item["name"] == "moescope-data"]
    assert "emptyDir" in data
    assert {"name": "moescope-data", "mountPath": "/data"} in service["volumeMounts"]
    copied = re.search(r"^COPY --from=build /plugin (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert copied is not None
    assert copier["command"] == ["cp", "-r", f"{copied[1]}/.", "/plugin/"]


def test_notes_have_the_lines_for_vllm() -> None:
    """What NOTES prints is what the example's pod has."""
    for name in ("example", "sidecar-example", "own-image", "tls"):
        notes = templates(name)["NOTES"]
        lines = yaml.safe_load(notes[notes.index("initContainers:") :])
        spec = vllm_pod(name)
        assert (lines["initContainers"] or []) == spec.get("initContainers", [])
        assert [item for item in spec["volumes"] if item["name"] != "shm"] == lines["volumes"]
        env = [item for item in spec["containers"][0]["env"] if item["name"] != "HF_TOKEN"]
        assert env == lines["containers"][0]["env"]


def test_a_chart_that_depends_on_it_takes_its_lines(tmp_path: Path) -> None:
    chart = tmp_path / "parent"
    (chart / "charts").mkdir(parents=True)
    (chart / "templates").mkdir()
    (chart / "charts" / "moescope").symlink_to(CHART)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    (chart / "values.yaml").write_text("moescope: {mode: sidecar, vllm: {pool: chat}}\n")
    (chart / "templates" / "vllm.yaml").write_text(
        'initContainers: {{- include "moescope.vllm.initContainers" .Subcharts.moescope | nindent 2 }}\n'
        'env: {{- include "moescope.vllm.env" .Subcharts.moescope | nindent 2 }}\n'
    )
    values = tmp_path / "values.yaml"
    values.write_text("{}\n")
    made = render([values], chart)[str(values)]["templates"]
    lines = yaml.safe_load(made["vllm"])
    assert [item["name"] for item in lines["initContainers"]] == ["moescope-plugin", "moescope"]
    assert {"name": "MOESCOPE_POOL", "value": "chat"} in lines["env"]
