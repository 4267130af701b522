"""Verbs about the gateway as a whole."""

from __future__ import annotations

from natcore.control.verb import Answer, Context, verb, verbs


@verb("verbs")
def list_verbs(context: Context) -> Answer:
    """List what may be asked here, by this peer."""
    for name, each in sorted(verbs().items()):
        text = (each.function.__doc__ or "").strip().split("\n")[0]
        yield {
            "verb": name, "writes": each.writes, "permitted": context.peer.writer or not each.writes,
            "arguments": list(each.arguments.__struct_fields__), "about": text,
        }  # fmt: skip
    return {}
