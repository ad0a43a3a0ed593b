"""`csm devices`: what there is to hear and to speak through."""

from csm_mlx_app import console, options


def devices(as_json: options.Json = False) -> None:
    """List the microphones and loudspeakers.

    Any index or name goes into --input-device and --output-device; a part of a
    name will do. An index changes when devices come and go, a name does not.

    [bold]Examples[/bold]
      csm devices
      csm say "Hello." --output-device headphones
      csm devices --json | jq -r '.[] | select(.kind == "input").name'
    """
    from csm_mlx_app.sound.devices import list_devices

    found = list_devices()
    if as_json:
        console.data([device.to_dict() for device in found])
        return
    if not found:
        console.talk("no microphones and no loudspeakers; connect some, and see csm doctor")
        return
    console.table(
        ("", "index", "name", "channels", "rate", "default"),
        [(d.kind, d.index, d.name, d.channels, f"{d.rate_hz} Hz", "*" if d.default else "") for d in found],
    )
