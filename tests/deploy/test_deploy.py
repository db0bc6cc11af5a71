"""The files in deploy/, as far as they can be checked without Docker, Kubernetes and a cloud."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.annotate.config import AnnotateConfig
from pipeline.config.loading import load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def locked_version(package: str) -> str:
    match = re.search(rf"^{package}==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert match
    return match[1]


RAY = locked_version("ray")
PROJECT = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]
IMAGE = f"your-registry/maskfleet:{PROJECT}-ray{RAY}"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return next(d for d in documents("kuberay_rayjob.yaml") if d["kind"] == "RayJob")


@pytest.fixture(scope="module")
def rayjob_config(tmp_path_factory: pytest.TempPathFactory) -> AnnotateConfig:
    config_map = next(d for d in documents("kuberay_rayjob.yaml") if d["kind"] == "ConfigMap")
    path = tmp_path_factory.mktemp("config") / "annotate.yaml"
    path.write_text(config_map["data"]["annotate.yaml"])
    return load_config(AnnotateConfig, path)


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return documents("ray_cluster_aws.yaml")[0]


def obj(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


# KubeRay's API (ray.io/v1) and Kubernetes' pods, reduced to what the file uses: a misspelt key is an error, as it
# would be a silently ignored one on the cluster.
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
TEXT = {"type": "string", "minLength": 1}
BOOL = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Mi|Gi|Ti)?$"}
TEXT_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
RESOURCES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = obj(
    "name image resources volumeMounts",
    name=NAME,
    image=TEXT,
    ports=array(obj("containerPort name", containerPort=COUNT, name=NAME)),
    env=array(obj("name value", name=TEXT, value=TEXT)),
    envFrom=array(obj("secretRef", secretRef=obj("name", name=NAME, optional=BOOL))),
    resources=obj("requests limits", requests=RESOURCES, limits=RESOURCES),
    volumeMounts=array(obj("name mountPath", name=NAME, mountPath=TEXT, readOnly=BOOL)),
)
VOLUME = obj(
    "name",
    name=NAME,
    configMap=obj("name", name=NAME),
    persistentVolumeClaim=obj("claimName", claimName=NAME, readOnly=BOOL),
    emptyDir=obj("", medium={"const": "Memory"}, sizeLimit=QUANTITY),
)
POD = obj(
    "containers securityContext volumes",
    containers=array(CONTAINER),
    volumes=array(VOLUME),
    securityContext=obj("runAsNonRoot", runAsNonRoot={"const": True}, runAsUser={"const": 1000}, fsGroup=COUNT),
    tolerations=array(obj("key", key=TEXT, operator={"const": "Exists"}, effect={"enum": ["NoSchedule"]})),
)
TEMPLATE = obj("spec", spec=POD)
WORKERS = obj(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXT_MAP,
    template=TEMPLATE,
)
CLUSTER = obj(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=obj("mode", mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=BOOL,
    autoscalerOptions=obj("", idleTimeoutSeconds=COUNT),
    headGroupSpec=obj("rayStartParams template", rayStartParams=TEXT_MAP, template=TEMPLATE),
    workerGroupSpecs=array(WORKERS),
)
RAYJOB_SCHEMA = obj(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=obj("name", name=NAME),
    spec=obj(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=BOOL,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=CLUSTER,
    ),
)


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def gpus(group: dict[str, Any]) -> int:
    container = group["template"]["spec"]["containers"][0]
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))


def test_rayjob_has_only_known_fields(rayjob: dict[str, Any]) -> None:
    jsonschema.validate(rayjob, RAYJOB_SCHEMA)


def test_rayjob_cleans_up_and_retries(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_rayjob_names_one_ray_version(rayjob: dict[str, Any]) -> None:
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == RAY
    assert {container["image"] for pod in pods(rayjob) for container in pod["containers"]} == {IMAGE}


def test_rayjob_mounts_what_it_declares(rayjob: dict[str, Any]) -> None:
    for pod in pods(rayjob):
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}
        assert "/dev/shm" in [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]


def test_rayjob_runs_the_entry_point_on_its_own_config(rayjob: dict[str, Any], rayjob_config: AnnotateConfig) -> None:
    words = shlex.split(rayjob["spec"]["entrypoint"])
    assert words[:2] == ["python", "-m"]
    assert importlib.util.find_spec(words[2]) is not None
    head = pods(rayjob)[0]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    assert words[words.index("--config") + 1] == f"{mounts['config']}/annotate.yaml"
    assert str(rayjob_config.model.checkpoint).startswith(mounts["models"] + "/")


def test_rayjob_gpu_group_fits_the_replicas(rayjob: dict[str, Any], rayjob_config: AnnotateConfig) -> None:
    groups = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in groups)
    resources = rayjob_config.resources
    assert resources.actor_range is not None
    assert sum(g["maxReplicas"] * gpus(g) for g in groups) >= resources.actor_range[1]
    assert sum(g["replicas"] * gpus(g) for g in groups) == 0, "from none"
    assert resources.wait_for_gpus_s > 0
    assert rayjob["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert {gpus(g) for g in groups} == {0, 1}, "a CPU group and a GPU group"
    assert rayjob_config.resources.gpus_per_actor == 1


def test_aws_cluster_passes_rays_own_validation(aws: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(aws)
    validate_config(prepared)
    assert prepared["setup_commands"] == [], "Ray's defaults would install a nightly Ray"
    assert prepared["head_setup_commands"] == []


def test_aws_cluster_has_head_cpu_and_gpu_nodes(aws: dict[str, Any]) -> None:
    assert set(aws["available_node_types"]) == {"head", "cpu", "gpu"}
    assert aws["docker"]["image"] == IMAGE
    workers = [aws["available_node_types"][name] for name in ("cpu", "gpu")]
    assert sum(worker["max_workers"] for worker in workers) <= aws["max_workers"]
    resources = load_config(AnnotateConfig, ROOT / "configs" / "annotate_cluster_s3.yaml").resources
    assert resources.actor_range is not None
    assert resources.wait_for_gpus_s > 0, "it starts from none"
    assert workers[1]["min_workers"] == 0
    assert workers[1]["max_workers"] >= resources.actor_range[1]


def test_aws_cluster_starts_every_ray_with_the_same_token(aws: dict[str, Any]) -> None:
    (token_path,) = aws["file_mounts"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = aws[key][-1]
        assert "RAY_AUTH_MODE=token" in start
        assert f"RAY_AUTH_TOKEN_PATH={token_path}" in start
        assert "ray start" in start


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: (FROM, ...), (COPY, ...), without comments."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.strip().partition(" ") for line in joined) if word]


def copied() -> list[str]:
    sources = []
    for word, rest in instructions("Dockerfile"):
        if word == "COPY":
            sources += [part for part in rest.split() if not part.startswith("--")][:-1]
    return sources


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert source in kept
    assert kept == set(copied())


def test_dockerfile_has_the_locked_ray_and_no_root() -> None:
    found = instructions("Dockerfile")
    assert dict(found)["FROM"] == f"rayproject/ray:{RAY}-py311-cpu"
    assert [rest for word, rest in found if word == "USER"] == ["1000"]
    versions = re.findall(r"ray.__version__ == '([^']+)'", (DEPLOY / "Dockerfile").read_text())
    assert versions == [RAY]
    assert IMAGE in (DEPLOY / "Dockerfile").read_text()


def test_dockerfile_installs_under_the_lock() -> None:
    installs = [rest for word, rest in instructions("Dockerfile") if word == "RUN" and "pip install" in rest]
    assert "--constraint requirements.lock" in installs[0]
    assert "--no-deps ." in installs[1]


def test_readme_names_what_exists() -> None:
    text = (DEPLOY / "README.md").read_text()
    assert IMAGE in text
    for path in re.findall(r"(?:deploy|configs|tests)/[\w.]+\w", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module) is not None
