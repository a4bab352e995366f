// Draws a board of window.MOESCOPE (made by make.py) with the components of Grafana's own library.

const { createTheme, dateTime, getFieldDisplayValues } = require('@grafana/data');
const {
  BigValue,
  BigValueColorMode,
  BigValueGraphMode,
  GlobalStyles,
  PanelChrome,
  Table,
  ThemeContext,
  TimeSeries,
  VizRepeater,
} = require('@grafana/ui');
import { createRoot } from 'react-dom/client';

import { prepared } from './fields.js';
import { frames } from './frames.js';

const COLUMNS = 24;
const CELL = 30;
const GAP = 8;
const NOT_DRAWN = 3;
const LEGEND = { displayMode: 'list', placement: 'bottom', calcs: [], showLegend: true };

const theme = createTheme({ colors: { mode: 'dark' } });

function Stat({ data, panel, width, height }) {
  const values = () =>
    getFieldDisplayValues({
      fieldConfig: panel.fieldConfig,
      reduceOptions: { calcs: ['lastNotNull'], values: false, fields: '' },
      replaceVariables: (text) => text,
      theme,
      data,
      timeZone: 'utc',
    });
  const value = ({ value: shown, width, height, count }) => (
    <BigValue
      value={count > 1 ? shown.display : { ...shown.display, title: '' }}
      count={count}
      colorMode={BigValueColorMode.Value}
      graphMode={BigValueGraphMode.None}
      width={width}
      height={height}
      theme={theme}
    />
  );
  return (
    <VizRepeater
      getValues={values}
      renderValue={value}
      renderCounter={data}
      source={data}
      width={width}
      height={height}
      orientation="auto"
      autoGrid
    />
  );
}

function Lines({ data, width, height, range }) {
  if (!data.some((frame) => frame.length > 0)) {
    return <p>No data</p>; // as Grafana's panel; the component takes it for a fault
  }
  return (
    <TimeSeries
      frames={data}
      structureRev={1}
      timeRange={range}
      timeZone="utc"
      width={width}
      height={height}
      legend={LEGEND}
    />
  );
}

function Cells({ data, width, height }) {
  return data.length ? <Table data={data[0]} width={width} height={height} columnMinWidth={150} /> : null;
}

const KINDS = { stat: Stat, timeseries: Lines, table: Cells };

function Panel({ panel, data, width, range }) {
  const column = (width - (COLUMNS - 1) * GAP) / COLUMNS;
  const { x, y, w, h } = panel.gridPos;
  const place = {
    position: 'absolute',
    left: x * (column + GAP),
    top: y * (CELL + GAP),
    width: w * (column + GAP) - GAP,
    height: h * (CELL + GAP) - GAP,
  };
  if (panel.type === 'row') {
    return (
      <div style={place}>
        <h2 style={{ fontSize: 16, margin: 0, lineHeight: '30px' }}>{panel.title}</h2>
      </div>
    );
  }
  const Kind = KINDS[panel.type];
  return (
    <div style={place} data-panel={panel.title}>
      <PanelChrome {...{ title: panel.title, description: panel.description, width: place.width, height: place.height }}>
        {(width, height) =>
          Kind ? (
            <Kind {...{ data, panel, width, height, range }} />
          ) : (
            <p>Not drawn: Grafana&apos;s {panel.type} panel is not in its library of components.</p>
          )
        }
      </PanelChrome>
    </div>
  );
}

/** Panels with those that can't be drawn made low; all of these are as wide as the board. */
function placed(panels) {
  let up = 0;
  return panels.map((panel) => {
    const place = { ...panel.gridPos, y: panel.gridPos.y - up };
    if (panel.type !== 'row' && !(panel.type in KINDS)) {
      up += place.h - NOT_DRAWN;
      place.h = NOT_DRAWN;
    }
    return { ...panel, gridPos: place };
  });
}

function Board({ board, drawn, range, ready }) {
  const panels = placed(board.panels);
  const rows = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const width = window.innerWidth - 2 * GAP;
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div id="board" data-ready={ready} style={{ padding: GAP, background: theme.colors.background.canvas }}>
        <h1 style={{ fontSize: 20, margin: '4px 0 8px' }}>{board.title}</h1>
        <div style={{ position: 'relative', height: rows * (CELL + GAP) }}>
          {panels.map((panel) => (
            <Panel key={panel.id} data={drawn.get(panel.id)} {...{ panel, width, range }} />
          ))}
        </div>
      </div>
    </ThemeContext.Provider>
  );
}

async function main() {
  const { board, from, to, step } = window.MOESCOPE;
  const [start, end] = [dateTime(from * 1000), dateTime(to * 1000)];
  const range = { from: start, to: end, raw: { from: start, to: end } };
  const drawn = new Map();
  for (const panel of board.panels) {
    if (panel.type in KINDS) {
      drawn.set(panel.id, await prepared(panel, frames(panel, step * 1000), theme));
    }
  }
  // Twice: what is drawn on canvases does not change by itself when the fonts, which the first one asks for, are here.
  const root = createRoot(document.getElementById('root'));
  root.render(<Board {...{ board, drawn, range }} />);
  await new Promise(requestAnimationFrame);
  await Promise.all([document.fonts.load('400 12px Inter'), document.fonts.load('500 12px Inter')]);
  root.render(<Board key="drawn" ready {...{ board, drawn, range }} />);
}

main();
