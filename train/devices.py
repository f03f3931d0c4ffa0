"""Which devices, and which machines, a training runs on."""

import contextlib
import json
import os
import socket
import time

import tensorflow as tf

from runtime.errors import BadInput
from runtime.gpus import gpu_numbers

MACHINES_WAIT = 120.0  # seconds for all machines of TF_CONFIG to come


def choose_strategy(gpus):
    """Make TensorFlow see the GPUs asked for only.

    Args:
        gpus: "0,1" or "0-1" for GPU numbers, "cpu" for none.

    Returns:
        tf.distribute.Strategy over them; where TF_CONFIG names several machines, over all of theirs.
    """
    count = _show(gpus)
    if "TF_CONFIG" in os.environ:
        return _several_machines(count)
    if count < 2:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([f"GPU:{index}" for index in range(count)])


def _show(gpus):
    """Hide all GPUs but these; returns how many there are."""
    numbers = gpu_numbers(gpus)
    if not numbers:
        tf.config.set_visible_devices([], "GPU")
        return 0
    present = tf.config.list_physical_devices("GPU")
    missing = [number for number in numbers if number >= len(present)]
    if missing:
        raise BadInput(f"GPU {', '.join(map(str, missing))} asked for, but TensorFlow sees {len(present) or 'none'}; "
                       "use GPUS=cpu (--gpu cpu), or install tensorflow[and-cuda] where there is an NVIDIA GPU")
    tf.config.set_visible_devices([present[number] for number in numbers], "GPU")
    for number in numbers:
        tf.config.experimental.set_memory_growth(present[number], True)
    return len(numbers)


def _several_machines(gpus):
    try:
        cluster = json.loads(os.environ["TF_CONFIG"])
        machines, index = cluster["cluster"]["worker"], int(cluster["task"]["index"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"TF_CONFIG is not as it should be ({error!r}); write for example "
                       '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
                       ) from error
    if not 0 <= index < len(machines):
        raise BadInput(f"TF_CONFIG: task index {index} is none of its {len(machines)} workers")
    _wait_for(machines, index)
    kind = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=kind.NCCL if gpus else kind.RING)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def _wait_for(machines, index):
    """Return once all machines are there: the first one listens where TensorFlow will, the others call.

    TensorFlow itself would wait for a missing machine for ever, deaf to signals.
    """
    host, _, port = machines[0].rpartition(":")
    if not (port.isdecimal() and int(port) < 1 << 16):
        raise BadInput(f"{machines[0]}, the first machine of TF_CONFIG, is not HOST:PORT")
    deadline = time.monotonic() + MACHINES_WAIT
    callers: dict[int, socket.socket] = {}
    try:
        if index == 0:
            with socket.create_server(("", int(port))) as server:
                while len(callers) < len(machines) - 1:
                    server.settimeout(max(0.01, deadline - time.monotonic()))
                    caller, _ = server.accept()
                    caller.settimeout(1)
                    with contextlib.suppress(OSError):  # of somebody else, who says nothing
                        number = int.from_bytes(caller.recv(4), "big")
                        if 0 < number < len(machines):
                            callers[number] = caller
                for caller in callers.values():
                    caller.sendall(b"go")
                    caller.close()
            return
        while time.monotonic() < deadline:
            try:
                with socket.create_connection((host, int(port)), timeout=1) as call:
                    call.sendall(index.to_bytes(4, "big"))
                    call.settimeout(max(0.01, deadline - time.monotonic()))
                    if call.recv(2) == b"go":
                        return
            except (ConnectionError, TimeoutError):
                pass  # not there yet
            time.sleep(0.2)
        raise TimeoutError
    except TimeoutError:
        missing = ", ".join(machines[other] for other in range(1, len(machines)) if other not in callers)
        raise BadInput(f"waited {MACHINES_WAIT:.0f} s in vain for {missing if index == 0 else machines[0]} of "
                       "TF_CONFIG; start the same command there") from None
    except OSError as error:  # a name that nobody knows, a port that is taken
        raise BadInput(f"{machines[0]}, the first machine of TF_CONFIG: {error}; give another host or port") from error


def writes(strategy):
    """Whether this process is the one that writes checkpoints, logs and progress: the first machine's."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.cluster_spec().jobs or resolver.task_id == 0


def distributed_batches(strategy, config, loader, first_sample):
    """An iterator over the devices' shares of batches, from sample number `first_sample` on.

    Every machine loads its own share only. The batch as a whole is the same however it is divided.
    """
    replicas = strategy.num_replicas_in_sync
    if config.batch % replicas:
        raise BadInput(f"batch = {config.batch} cannot be divided over {replicas} devices; choose a multiple of it")
    share = config.batch // replicas
    if share % config.accumulate:
        raise BadInput(f"accumulate = {config.accumulate} does not divide the {share} samples of a device's share; "
                       "choose another, or another batch")

    def share_of(context):
        local = replicas // context.num_input_pipelines
        machine = context.input_pipeline_id * local * share

        def batches():
            for pixels, labels in loader.batches(first_sample + machine, local * share, config.batch):
                for start in range(0, local * share, share):
                    yield pixels[start:start + share], labels[start:start + share]

        signature = (tf.TensorSpec((share, config.input_size[1], config.input_size[0], 3), tf.uint8),
                     tf.TensorSpec((share, *loader.label_shape), tf.float32))
        return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)

    return iter(strategy.distribute_datasets_from_function(share_of))
