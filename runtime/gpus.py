"""Which GPUs somebody asks for, and what drives them."""

import re
import subprocess

from runtime.errors import BadInput


def gpu_numbers(text):
    """"0,2-3" → [0, 2, 3]; "cpu" and None → [].

    Raises:
        BadInput: it is none of these, or names a GPU twice.
    """
    if text in (None, "cpu"):
        return []
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise BadInput(f"GPUs {text!r} are neither numbers such as 0,1 or 0-1 nor cpu")
    ends = [part.split("-") for part in text.split(",")]
    numbers = [number for first, *last in ends for number in range(int(first), int((last or [first])[0]) + 1)]
    if not numbers or len(set(numbers)) < len(numbers):
        raise BadInput(f"GPUs {text!r} name {'one twice' if numbers else 'none'}; write for example 0,1 or 0-1")
    return numbers


def driver_version():
    """Version of NVIDIA's driver as nvidia-smi tells it, "" where that is not to be had, as on a Jetson."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.partition("\n")[0].strip()
