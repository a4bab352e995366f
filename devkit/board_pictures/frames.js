// From Prometheus's answers to Grafana's data frames, as its Prometheus data source makes them in the server.

const { FieldType, toDataFrame } = require('@grafana/data');

const number = (text) => Number(text.replace('Inf', 'Infinity'));

/** A legend with its {{labels}} filled in; undefined where Grafana names the series by itself. */
function named(query, labels) {
  if (query.legendFormat === '__auto') {
    return Object.keys(labels).length ? undefined : query.expr;
  }
  return query.legendFormat.replace(/{{\s*(\w+)\s*}}/g, (_, label) => labels[label] ?? '');
}

/** One frame a series: a time and a value. `step` is in milliseconds, so that gaps stay gaps. */
function series(query, step) {
  return query.result.map(({ metric, values }) => {
    const { __name__: name, ...labels } = metric;
    return toDataFrame({
      refId: query.refId,
      fields: [
        { name: 'Time', type: FieldType.time, config: { interval: step }, values: values.map(([at]) => at * 1000) },
        {
          name: name ?? 'Value',
          type: FieldType.number,
          labels,
          config: { displayNameFromDS: named(query, labels) },
          values: values.map(([, value]) => number(value)),
        },
      ],
    });
  });
}

/** One frame a query: a row a series, a column a label. */
function table(query, queries) {
  const labels = [...new Set(query.result.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const last = query.result.map(({ values }) => values.at(-1));
  return toDataFrame({
    refId: query.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: last.map(([at]) => at * 1000) },
      ...labels.map((label) => ({
        name: label,
        type: FieldType.string,
        values: query.result.map(({ metric }) => metric[label] ?? ''),
      })),
      {
        name: queries > 1 ? `Value #${query.refId}` : 'Value',
        type: FieldType.number,
        values: last.map(([, value]) => number(value)),
      },
    ],
  });
}

/** The frames of a panel's queries. */
export function frames(panel, step) {
  const all = panel.targets.filter((query) => query.result.length);
  return all.flatMap((query) =>
    query.format === 'table' ? [table(query, panel.targets.length)] : series(query, step)
  );
}
