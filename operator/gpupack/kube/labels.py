"""Names that gpupack writes into the cluster: the group, the labels and annotations of its children.

Labels are for selecting, annotations for rebuilding a plan whose status was lost. Only names, no meaning.
"""

from __future__ import annotations

GROUP = "gpupack.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
API_PATH = f"/apis/{API_VERSION}"
"""Where the API server has them; a namespaced one is below `namespaces/NAMESPACE` there."""
MANAGED_BY = "gpupack"

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
PART_OF = "app.kubernetes.io/part-of"
MANAGER = "app.kubernetes.io/managed-by"

POOL = f"{GROUP}/pool"
SERVING = f"{GROUP}/serving"
GPU = f"{GROUP}/gpu"
SLOT = f"{GROUP}/slot"
SHAPE = f"{GROUP}/shape"
"""The placement's content hash on the label, the shape itself as JSON on the annotation of the same name."""
TEMPLATE = f"{GROUP}/template"
SHARING = f"{GROUP}/sharing"
IN_SERVICE = f"{GROUP}/in-service"
"""`true` while the Service may send requests; part of the Service's selector."""

ENGINE_ARGUMENTS = f"{GROUP}/engine-arguments"
PREDICTED = f"{GROUP}/predicted"
UTILIZATION = f"{GROUP}/gpu-memory-utilization-percent"

HOUSEHOLD = f"{GROUP}/household"
"""On a pod that several engines come into: whose. Its orders and for how many it has cores are annotations."""
ORDERS = f"{GROUP}/orders"
ROOM = f"{GROUP}/room-for-engines"

SERVES = f"serving.{GROUP}/"
"""Before a serving's name: on a pod that several engines come into, where an endpoint picker finds engines of it."""
ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""At which ports of a pod an endpoint picker finds engines; the second is what it was called before llm-d-router."""

SERVICE_NAME = "kubernetes.io/service-name"
SLICE_MANAGER = "endpointslice.kubernetes.io/managed-by"
ACTIVATOR = "activator"
"""The component that holds requests for servings that sleep, and of the slices that lead to it."""
WAKE_SECONDS = f"{GROUP}/wake-seconds"
"""On such a slice: how long the last wake took, for those who are sent away."""

DRIVER = "gpu.nvidia.com"
DEVICE_CLASS, MIG_DEVICE_CLASS = "gpu.nvidia.com", "mig.nvidia.com"
MIG_UUID = "MIG-"
"""How the uuid of a MIG slice begins, where that of a GPU begins with `GPU-`."""
EXTENDED_RESOURCES = "nvidia.com/"
PLUGIN_GPU, PLUGIN_SLICE = "nvidia.com/gpu", "nvidia.com/mig-"
"""Whole GPUs of a device plugin, or MIG slices with its strategy single; with mixed its slices are by profile."""
PRODUCT, PRODUCT_MEMORY_MIB = "nvidia.com/gpu.product", "nvidia.com/gpu.memory"
PLUGIN_SHARING = "nvidia.com/gpu.sharing-strategy"
"""What GPU feature discovery writes on nodes."""

SLICE_OF = "-MIG-"
"""Between a product and the profile of its slices, as GPU feature discovery writes it."""

TRUE, FALSE = "true", "false"
ELSEWHERE = "elsewhere"
"""Of `IN_SERVICE` in a Service whose EndpointSlices gpupack writes: no pod has it."""
