"""`engine gpu-info`: what MLX has to run on here."""

from __future__ import annotations

from ..options import AsJson, Device


def gpu_info(device: Device = None, json: AsJson = False) -> None:
    """MLX's device, its memory, versions, and the pins that decide what float32 is."""
    from ..machine import describe, size
    from ..runtime import use_device
    from ._output import print_json, show, table

    use_device(device)
    known = describe()
    if json:
        print_json(known)
        return
    shown, memory = table("", ""), known["memory"]
    shown.show_header = False
    shown.add_row("device", f"{known['device']} ({known['name']})")
    shown.add_row("gpu", known["gpu"] or "none that this build of MLX can use")
    shown.add_row("class", known["device_class"])
    for name, count in memory.items():
        if count is not None:
            shown.add_row(f"memory, {name.replace('_', ' ')}", size(count))
    for name, version in known["versions"].items():
        shown.add_row(name, version)
    tf32 = known["pins"]["tf32"]
    shown.add_row("TF32", tf32 if tf32 == "off" else "on: MLX_ENABLE_TF32 is not 0")
    shown.add_row("certificates", known["certificates"])
    shown.add_row("platform", known["platform"])
    show(shown)
