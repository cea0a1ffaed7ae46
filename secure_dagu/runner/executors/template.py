"""`template.render`: Go templates (workflow language, section 4.4)."""

from __future__ import annotations

import asyncio
import re

from secure_dagu.dag import formats
from secure_dagu.dag.gotemplate import render as render_text
from secure_dagu.dag.values import FieldMode, first_unresolved, resolve, resolve_tree
from secure_dagu.errors import DefinitionError
from secure_dagu.runner.context import SUCCESS, Done, StepContext
from secure_dagu.runner.executors import file_access as access
from secure_dagu.runner.executors.stopping import unless_stopped
from secure_dagu.runner.files import path_below
from secure_dagu.runner.masking import raw

_ONE_REFERENCE = re.compile(r"\$\{[^{}]+\}")


async def render(context: StepContext) -> Done:
    """Render a template to stdout, or into a file that appears when it is whole."""
    inputs = context.step.inputs
    text = _template(context)
    data = resolve_tree(inputs.get("data") or {}, context.scope, FieldMode.FIELD)
    output = resolve(formats.as_text(inputs.get("output") or ""), context.scope, FieldMode.FIELD)

    async def work() -> Done:
        rendered = raw(await asyncio.to_thread(render_text, text, data))
        if not output:
            context.stdout(rendered)
            return SUCCESS
        with access.parent(path_below(context.cwd, output), make=True) as (folder, name):
            access.write(folder, name, rendered, mode=0o644, overwrite=True)
        return SUCCESS

    return await unless_stopped(context.stop, work())


def _template(context: StepContext) -> str:
    """Return the template; its own text is never resolved, and what a reference gives is not looked at again."""
    inputs = context.step.inputs
    if (inputs.get("template") is None) == (inputs.get("template_ref") is None):
        raise DefinitionError("template.render needs exactly one of template, template_ref")
    if inputs.get("template") is not None:
        return formats.as_text(inputs["template"])
    ref = formats.as_text(inputs["template_ref"]).strip()
    if not _ONE_REFERENCE.fullmatch(ref):
        raise DefinitionError("with.template_ref must be exactly one reference", why="such as ${steps.a.outputs.text}")
    text = resolve(ref, context.scope, FieldMode.FIELD)
    if first_unresolved(ref, context.scope, FieldMode.FIELD) or text == ref or not text:
        raise DefinitionError("with.template_ref cannot be used", why=f"{ref} has no value")
    return text
