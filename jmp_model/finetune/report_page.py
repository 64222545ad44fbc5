"""The words and the order of the report page, as a Jinja template; every value is escaped unless it is a figure."""

from __future__ import annotations

from typing import Final

EXTRA_STYLE: Final = """
.grid3 { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 16px; }
.grid3 .card { margin: 0; padding: 16px 18px 12px; }
.grid3 + .card, .card + .grid3 { margin-top: 16px; }
.tile small { font-size: 15px; font-weight: 500; color: var(--soft); letter-spacing: 0; }
pre { margin: 0; padding: 12px 14px; background: var(--page); border-radius: 8px; overflow-x: auto; }
pre code { font-size: 13px; line-height: 1.55; }
"""

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
{{ colors }}
<header><div>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<div class="tiles">
{%- for tile in tiles %}
<div class="tile"><b>{{ tile.value }} <small>{{ tile.unit }}</small></b><span>{{ tile.label }}</span></div>
{%- endfor %}
</div>
</div></header>
<main>
<section>
<div class="heading"><h2>Errors</h2><span class="lead">{{ measured_on }}</span></div>
<div class="card scroll"><table>
<thead><tr><th>target</th><th>metric</th><th class="number">this model</th><th class="number">RMSE</th>
<th class="number">labels vary by</th><th class="number">per atom</th>
{%- for name in published %}<th class="number">{{ name }}</th>{% endfor %}<th>unit</th></tr></thead>
<tbody>
{%- for row in scores %}
<tr><td>{{ row.name }}</td><td>{{ row.metric }}</td><td class="number">{{ row.value }}</td>
<td class="number">{{ row.rmse }}</td><td class="number">{{ row.spread }}</td>
<td class="number">{{ row.per_atom }}</td>
{%- for name in published %}<td class="number">{{ row.published.get(name, "") }}</td>{% endfor %}
<td>{{ row.unit }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- for note in notes %}
<p class="note">{{ note }}</p>
{%- endfor %}
</section>
{%- if curves %}
<section>
<div class="heading"><h2>Learning curves</h2><span class="lead">{{ curves_lead }}</span></div>
<div class="grid3">
{%- for chart in curves %}
<div class="card"><h3>{{ chart.title }}</h3>{{ chart.figure }}</div>
{%- endfor %}
</div>
</section>
{%- endif %}
{%- for section in sections %}
<section>
<div class="heading"><h2>{{ section.name }}</h2><span class="lead">{{ section.lead }}</span></div>
<div class="grid3">
{%- for chart in section.charts %}
<div class="card"><h3>{{ chart.title }}</h3>{{ chart.figure }}</div>
{%- endfor %}
</div>
{%- if section.worst %}
<div class="card"><h3>Worst structures, {{ section.unit }}</h3>
<div class="pictures">
{%- for entry in section.worst %}
<figure class="picture">{{ entry.figure }}<figcaption><b>{{ entry.error }}</b> {{ entry.formula }}
<span title="{{ entry.source_id }}">{{ entry.short_id }}</span></figcaption></figure>
{%- endfor %}
</div></div>
{%- endif %}
</section>
{%- endfor %}
<section>
<div class="heading"><h2>Use and origin</h2></div>
{%- if usage %}
<div class="card"><h3>In ASE</h3><pre><code>{{ usage }}</code></pre></div>
{%- endif %}
<div class="card"><dl>
{%- for name, value in facts.items() %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{%- endfor %}
</dl></div>
</section>
</main>
</body>
</html>
"""
