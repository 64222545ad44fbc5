"""The words and the order of the page, as a Jinja template; every value is escaped unless it is a figure of ours."""

from __future__ import annotations

from typing import Final

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
<div class="tile"><b>{{ tile.value }}</b><span>{{ tile.label }}</span></div>
{%- endfor %}
</div>
</div></header>
<nav><div>
<a href="#overview">Overview</a>
{%- if overlap %}
<a href="#overlap">Duplicates</a>
{%- endif %}
{%- for section in sections %}
<a href="#{{ section.anchor }}">{{ section.name }}</a>
{%- endfor %}
</div></nav>
<main>
<section id="overview">
<div class="heading"><h2>Overview</h2></div>
<div class="card scroll">
<table>
<thead><tr><th>data set</th><th>split</th><th class="number">structures</th><th class="number">atoms</th>
<th class="number">atoms each</th><th class="number">elements</th><th class="number">quarantined</th>
<th class="number">skipped</th><th class="number">flagged</th><th class="number">size</th>
<th class="number">bytes each</th><th>format</th></tr></thead>
<tbody>
{%- for row in overview %}
<tr><td>{% if row.first %}<a href="#{{ row.anchor }}">{{ row.name }}</a>{% endif %}</td>
<td><span class="key"><i class="c{{ row.color }}"></i>{{ row.split }}</span></td>
<td class="number">{{ row.structures }}</td><td class="number">{{ row.atoms }}</td>
<td class="number">{{ row.mean }}</td><td class="number">{{ row.elements }}</td>
<td class="number{% if row.quarantined != '0' %} warn{% endif %}">{{ row.quarantined }}</td>
<td class="number">{{ row.skipped }}</td><td class="number">{{ row.flagged }}</td>
<td class="number">{{ row.size }}</td><td class="number">{{ row.bytes }}</td>
<td>{{ row.format }}</td></tr>
{%- endfor %}
</tbody></table>
</div>
{%- if all_elements %}
<div class="card"><h3>Elements of all data sets together</h3><div class="scroll">{{ all_elements }}</div></div>
{%- endif %}
</section>
{%- if overlap %}
<section id="overlap">
<div class="heading"><h2>Duplicates between data sets</h2><span class="lead">{{ overlap.lead }}</span></div>
<div class="card scroll"><table>
<thead><tr><th>pre-training</th><th class="number">structures</th><th class="number">exact</th>
<th class="number">near</th><th class="number">share</th><th>downstream</th>
<th class="number">structures</th><th class="number">exact</th>
<th class="number">near</th><th class="number">share</th></tr></thead>
<tbody>
{%- for row in overlap.rows %}
<tr><td>{{ row.left }}</td><td class="number">{{ row.left_size }}</td><td class="number">{{ row.left_exact }}</td>
<td class="number">{{ row.left_near }}</td><td class="number{{ row.tone }}">{{ row.left_share }}</td>
<td>{{ row.right }}</td><td class="number">{{ row.right_size }}</td><td class="number">{{ row.right_exact }}</td>
<td class="number">{{ row.right_near }}</td><td class="number{{ row.tone }}">{{ row.right_share }}</td></tr>
{%- endfor %}
</tbody></table></div>
</section>
{%- endif %}
{%- for section in sections %}
<section id="{{ section.anchor }}">
<div class="heading"><h2>{{ section.name }}</h2><span class="lead">{{ section.summary }}</span></div>
<div class="card">
<h3>Elements</h3>
<p class="note">{{ section.elements_note }}</p>
<div class="scroll">{{ section.elements }}</div>
</div>
<div class="heading"><div class="keys">
{%- for key in section.splits %}<span class="key"><i class="c{{ key.color }}"></i>{{ key.name }}</span>{% endfor -%}
</div><span class="note">{{ section.sample_note }}</span></div>
<div class="grid2">
{%- for chart in section.charts %}
<div class="card"><h4>{{ chart.title }}</h4><p class="note">{{ chart.note }}</p>{{ chart.figure }}</div>
{%- endfor %}
</div>
{%- if section.pictures %}
<div class="card">
<h3>Some structures</h3>
<div class="pictures">
{%- for picture in section.pictures %}
<figure>{{ picture.figure }}<figcaption><b>{{ picture.formula }}</b> · {{ picture.natoms }} atoms
<span title="{{ picture.source_id }}">{{ picture.place }}</span></figcaption></figure>
{%- endfor %}
</div>
</div>
{%- endif %}
<div class="card">
<h3>Records in, structures out</h3>
<div class="scroll"><table>
<thead><tr><th>split</th><th class="number">records in raw files</th><th class="number">structures</th>
<th class="number">quarantined</th><th class="number">skipped</th><th>balance</th></tr></thead>
<tbody>
{%- for row in section.balance %}
<tr><td>{{ row.split }}</td><td class="number">{{ row.records }}</td><td class="number">{{ row.structures }}</td>
<td class="number">{{ row.quarantined }}</td><td class="number">{{ row.skipped }}</td>
<td class="{{ 'good' if row.closes else 'warn' }}">{{ row.verdict }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- if section.reasons %}
<details open><summary>Reasons</summary><div class="scroll"><table>
<thead><tr><th>split</th><th>what</th><th>reason</th><th class="number">records</th><th>for instance</th></tr></thead>
<tbody>
{%- for row in section.reasons %}
<tr><td>{{ row.split }}</td><td>{{ row.what }}</td><td><code>{{ row.reason }}</code></td>
<td class="number">{{ row.count }}</td><td class="note">{{ row.example }}</td></tr>
{%- endfor %}
</tbody></table></div></details>
{%- endif %}
</div>
<div class="card">
<h3>Provenance</h3>
<dl>
{%- for fact in section.facts %}
<dt>{{ fact.name }}</dt><dd>{{ fact.value }}</dd>
{%- endfor %}
</dl>
{%- if section.columns %}
<details><summary>{{ section.columns | length }} columns</summary><div class="scroll"><table>
<thead><tr><th>column</th><th>level</th><th>type</th><th>unit</th><th>kind</th><th>what</th></tr></thead><tbody>
{%- for row in section.columns %}
<tr><td><code>{{ row.name }}</code></td><td>{{ row.level }}</td><td>{{ row.type }}</td><td>{{ row.unit }}</td>
<td>{{ row.kind }}</td><td>{{ row.description }}</td></tr>
{%- endfor %}
</tbody></table></div></details>
{%- endif %}
{%- if section.raw_files %}
<details><summary>{{ section.raw_count }}</summary><div class="scroll"><table>
<thead><tr><th>file</th><th class="number">bytes</th><th>SHA-256</th></tr></thead><tbody>
{%- for row in section.raw_files %}
<tr><td>{{ row.name }}</td><td class="number">{{ row.bytes }}</td><td><code>{{ row.sha256 }}</code></td></tr>
{%- endfor %}
</tbody></table></div></details>
{%- endif %}
</div>
</section>
{%- endfor %}
</main>
<footer><div>{{ footer }}</div></footer>
</body>
</html>
"""
