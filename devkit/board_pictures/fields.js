// Units, thresholds, colours and links of a panel's fields, and its transformations: done by Grafana's own code.

const {
  FieldConfigOptionsRegistry,
  applyFieldOverrides,
  identityOverrideProcessor,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} = require('@grafana/data');
const { firstValueFrom } = require('rxjs');

// What Grafana's plugins set where a board says nothing; the plugins themselves are not in the packages.
const LINES = {
  drawStyle: 'line',
  lineInterpolation: 'linear',
  lineWidth: 1,
  fillOpacity: 0,
  gradientMode: 'none',
  pointSize: 5,
  showPoints: 'auto',
  spanNulls: false,
  axisPlacement: 'auto',
  axisColorMode: 'text',
  scaleDistribution: { type: 'linear' },
  stacking: { mode: 'none', group: 'A' },
  thresholdsStyle: { mode: 'off' },
};
const CELLS = { align: 'auto', cellOptions: { type: 'auto' } };
const PLUGINS = {
  timeseries: { color: { mode: 'palette-classic' }, custom: LINES },
  stat: { color: { mode: 'thresholds' }, custom: {} },
  table: { color: { mode: 'thresholds' }, custom: CELLS },
};
const STANDARD = ['unit', 'decimals', 'min', 'max', 'thresholds', 'mappings', 'links', 'color', 'noValue', 'displayName'];

const option = (id, isCustom) => ({
  id: isCustom ? `custom.${id}` : id,
  path: id,
  name: id,
  isCustom,
  process: identityOverrideProcessor,
  shouldApply: () => true,
  override: () => null,
  editor: () => null,
});

function registry(custom) {
  const all = [...STANDARD.map((id) => option(id, false)), ...Object.keys(custom).map((id) => option(id, true))];
  return new FieldConfigOptionsRegistry(() => all);
}

standardTransformersRegistry.setInit(() =>
  [...new Map(Object.values(standardTransformers).map((one) => [one.id, one])).values()].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation,
    editor: () => null,
  }))
);

/** Frames as the panel shows them. */
export async function prepared(panel, frames, theme) {
  const plugin = PLUGINS[panel.type];
  const { defaults, overrides } = panel.fieldConfig;
  const steps = defaults.thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity }));
  const context = { interpolate: (text) => text };
  const transformed = await firstValueFrom(transformDataFrame(panel.transformations ?? [], frames, context));
  const custom = { ...plugin.custom, ...defaults.custom };
  return applyFieldOverrides({
    data: transformed,
    fieldConfig: {
      defaults: { color: plugin.color, ...defaults, thresholds: { ...defaults.thresholds, steps }, custom },
      overrides,
    },
    fieldConfigRegistry: registry(custom),
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
}
