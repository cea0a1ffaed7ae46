"""`mail.send`: a mail through the DAG's mail server (workflow language, section 4.6)."""

from __future__ import annotations

from secure_dagu.dag.values import FieldMode, resolve_tree
from secure_dagu.errors import DefinitionError, LimitExceeded
from secure_dagu.runner import smtp
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors.options import Options
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below


async def send(context: StepContext) -> Done:
    """Send a mail; say on stdout what was sent to whom."""
    return await unless_stopped(context.stop, _send(context))


async def _send(context: StepContext) -> Done:
    options = Options(resolve_tree(context.step.inputs, context.scope, FieldMode.FIELD))
    defaults = context.dag.step_defaults.get("smtp")
    if defaults is None:
        raise DefinitionError("there is no mail server", fix="set `smtp` at the root of the DAG")
    server = smtp.read_smtp(resolve_tree(defaults, context.scope, FieldMode.FIELD))
    text, to = options.text("message"), smtp.recipients(options.any("to"))
    mail = smtp.message(
        sender=options.text("from"),
        to=to,
        subject=options.text("subject"),
        body=text,
        is_html=text.lstrip().lower().startswith(("<!doctype html", "<html")),
        attachments=_attachments(context, options.texts("attachments")),
    )
    await smtp.send(server, mail)
    told = f"from: {options.text('from')}\nto: {', '.join(to)}\nsubject: {options.text('subject')}\nmessage: {text}\n"
    context.stdout(told.encode())
    return SUCCESS


def _attachments(context: StepContext, paths: list[str]) -> list[smtp.Attachment]:
    found, left = [], smtp.MAX_ATTACHED
    for text in paths:
        path = path_below(context.cwd, text)
        if not path.is_file():
            raise DefinitionError(f"the attachment {text} cannot be read", why="there is no such file")
        with path.open("rb") as file:
            data = file.read(left + 1)
        left -= len(data)
        if left < 0:
            raise LimitExceeded("the attachments are too large", why=f"the limit is {smtp.MAX_ATTACHED} bytes")
        found.append(smtp.Attachment(name=path.name, data=data))
    return found
