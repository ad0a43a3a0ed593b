"""`csm doctor`: looks at everything that `csm` needs, and says what to do where something is wrong."""

import typer

from csm_mlx_app import console, options

_MARKS = {"ok": "ok  ", "warning": "warn", "problem": "FAIL"}


def doctor(as_json: options.Json = False) -> None:
    """Check this machine, and say what to do about what is wrong.

    Platform, chip, memory, MLX and its device, audio devices, checkpoints, and
    a one-second timing of the embedded voice. Exits 1 if there is a problem; a
    warning is something that works less well than it could.

    [bold]Example[/bold]
      csm doctor
      csm doctor --json | jq '.[] | select(.status != "ok")'
    """
    from csm_mlx_app.checkup import checkup

    findings = []
    for finding in checkup():  # one by one: the timing takes a moment
        findings.append(finding)
        if as_json:
            continue
        print(f"{_MARKS[finding.status]}  {finding.name:<12} {finding.detail}", flush=True)
        if finding.cure:
            print(f"{'':18} -> {finding.cure}", flush=True)
    if as_json:
        console.data([finding.to_dict() for finding in findings])
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)
