"""The HTML of a page, as a jinja2 template: style, list of sections, and each kind of block.

It takes ``title``, ``intro``, ``sections`` (`pipelines.reports.html_page.Section`) and the
functions ``chips`` (text to escaped markup) and ``number_columns`` (which columns of a table are
aligned right). Written for an environment with ``autoescape``, ``trim_blocks`` and
``lstrip_blocks``.
"""

_STYLE = """\
:root { --ink: #1f2933; --soft: #667085; --line: #e4e7ec; --wash: #f7f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 28px 28px 60px; color: var(--ink);
       background: #fff;
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 6px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 90ch; }
nav { margin: 12px 0; font-size: 14px; }
nav a { margin-right: 16px; color: #1f4fd8; text-decoration: none; white-space: nowrap; }
.scroll { overflow-x: auto; margin: 10px 0 4px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px 5px 8px; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; white-space: nowrap; overflow-wrap: anywhere; }
td.wide { white-space: pre-line; min-width: 30ch; }
th { color: var(--soft); font-weight: 600; background: var(--wash); }
td.number, th.number { text-align: right; }
.note { font-size: 13px; color: var(--soft); }
.plots { display: flex; flex-wrap: wrap; gap: 18px; margin: 10px 0; }
figure { margin: 0; } figure img { width: 380px; max-width: 100%; display: block; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 18px;
         margin: 12px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; display: flex;
        flex-direction: column; }
.card img { width: 100%; max-height: 400px; object-fit: contain; background: var(--wash);
            display: block; }
.card header { display: flex; justify-content: space-between; align-items: baseline; gap: 8px;
               padding: 8px 12px 0; font-size: 12.5px; color: var(--soft);
               overflow-wrap: anywhere; }
.badge { font-size: 12px; font-weight: 600; padding: 1px 8px; border-radius: 10px;
         background: #eef0f3; color: var(--ink); white-space: nowrap; }
.badge.good { background: #dcfce7; color: #14662f; }
.badge.bad { background: #fee2e2; color: #a31515; }
.talk { margin: 0; padding: 6px 12px 12px; font-size: 14px; display: grid;
        grid-template-columns: max-content 1fr; gap: 4px 10px; }
.talk dt { color: var(--soft); font-size: 12.5px; padding-top: 1px; }
.talk dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.chip { display: inline-block; color: #fff; border-radius: 4px; padding: 0 5px; margin: 0 1px;
        font-size: 12px; line-height: 1.45; font-weight: 600; }
.phrase + .chip { margin-left: 5px; }
.stub { color: var(--soft); background: #eef0f3; border-radius: 4px; padding: 0 5px;
        font-size: 12px; margin-right: 3px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px;
         margin: 8px 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.fixed dd { font-family: ui-monospace, Menlo, Consolas, monospace; }
summary { cursor: pointer; font-size: 14px; margin: 6px 0; }
"""

_TABLE = """\
{% set numeric = number_columns(block.header, block.rows) %}
<div class="scroll"><table><thead><tr>
{% for name in block.header %}
<th{% if numeric[loop.index0] %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead><tbody>
{% for row in block.rows %}
<tr>
{% for cell in row %}
<td class="{% if numeric[loop.index0] %}number{% elif cell|length > 48 %}wide{% endif %}">
{{- cell -}}
</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if block.note %}<div class="note">{{ block.note }}</div>{% endif %}
"""

_PLOTS = """\
<div class="plots">
{% for caption, uri in block.plots %}
<figure><figcaption>{{ caption }}</figcaption><img src="{{ uri }}" alt="{{ caption }}"></figure>
{% endfor %}
</div>
"""

# No blank may come between <dd> and the text: the style keeps white space there.
_CARDS = """\
<div class="cards">
{% for card in block.cards %}
<article class="card"><img src="{{ card.image }}" alt="{{ card.title }}">
<header><span>{{ card.title }}</span>
{% if card.badge %}<span class="badge {{ card.tone }}">{{ card.badge }}</span>{% endif %}
</header>
<dl class="talk">
{% for line in card.lines %}
<dt>{{ line.who }}</dt><dd>{{ chips(line.text) }}</dd>
{% endfor %}
</dl></article>
{% endfor %}
</div>
"""

_FACTS = """\
{% if block.summary %}<details><summary>{{ block.summary }}</summary>{% endif %}
<dl class="facts{% if block.fixed_width %} fixed{% endif %}">
{% for name, value in block.facts.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% if block.summary %}</details>{% endif %}
"""

PAGE = f"""\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{{{ title }}}}</title>
<style>
{_STYLE}</style></head><body>
<h1>{{{{ title }}}}</h1>
{{% if intro %}}<p>{{{{ intro }}}}</p>{{% endif %}}
<nav>
{{% for section in sections %}}
<a href="#s{{{{ loop.index }}}}">{{{{ section.title }}}}</a>
{{% endfor %}}
</nav>
{{% for section in sections %}}
<section id="s{{{{ loop.index }}}}"><h2>{{{{ section.title }}}}</h2>
{{% if section.intro %}}<p>{{{{ section.intro }}}}</p>{{% endif %}}
{{% for block in section.blocks %}}
{{% if block.kind == "table" %}}
{_TABLE}{{% elif block.kind == "plots" %}}
{_PLOTS}{{% elif block.kind == "cards" %}}
{_CARDS}{{% elif block.kind == "facts" %}}
{_FACTS}{{% endif %}}
{{% else %}}
<p>Nothing to show.</p>
{{% endfor %}}
</section>
{{% endfor %}}
</body></html>
"""
"""The whole template; `Table`, `Plots`, `Cards` and `Facts` are told apart by their `kind`."""
