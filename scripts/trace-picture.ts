/**
 * Draws the trace of an update as a timeline, a lane for each stage of each rank, that a page can show as an image.
 *
 *     bun scripts/trace-picture.ts TRACE.json OUT.svg
 *
 * TRACE.json is what `ckpt update --trace`, `bench --only trace` and `GET /v1/updates/:id/trace` give.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import {
  type Block,
  blocksOf,
  busyMs,
  type Lane,
  readTrace,
  type TracePicture,
} from './trace-lanes.ts'

const WIDTH = 960
const MARGIN = 16
const NAME_X = 76
const PLOT_X = 160
const PLOT_WIDTH = 716
const LANE_HEIGHT = 20
const LANE_PITCH = 25
const GROUP_GAP = 12
const TITLE_HEIGHT = 26
const AXIS_HEIGHT = 26
const TICKS_MOST = 9
/** A block that is mostly gaps is still to be seen. */
const OPACITY_LEAST = 0.2
/** Of a character of 11 px in a sans-serif font, on the safe side. */
const CHARACTER_WIDTH = 6.4

const INK = '#1f2328'
const FAINT_INK = '#59636e'
const GRID = '#d8dee4'
const BACKGROUND = '#f6f8fa'
const BORDER = '#d1d9e0'
/** Text in white is legible on each. */
const COLOURS: Readonly<Record<string, string>> = {
  read: '#8250df',
  h2d: '#0969da',
  broadcast: '#bc4c00',
  reload: '#1a7f37',
  wait: '#cf222e',
  transfer: '#59636e',
}
const OTHER_COLOURS = ['#3b6e8f', '#7a5c9e', '#8a6d1b', '#2f7a78', '#9a4f6d']

/** A whole SVG document, the same for the same trace. */
export function drawTrace({ title, lanes, endMs }: TracePicture): string {
  const top = MARGIN + (title === null ? 0 : TITLE_HEIGHT)
  const xOf = (ms: number) => PLOT_X + (endMs === 0 ? 0 : (ms / endMs) * PLOT_WIDTH)
  const placed = placeLanes(lanes, top)
  const bottom = (placed.at(-1)?.y ?? top) + LANE_PITCH
  const height = bottom + AXIS_HEIGHT + MARGIN - 8
  const colourOf = colours()
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" role="img" font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="12">`,
    `<title>${escaped(title ?? 'timeline of an update')}</title>`,
    `<rect x="0.5" y="0.5" width="${WIDTH - 1}" height="${height - 1}" rx="6" fill="${BACKGROUND}" stroke="${BORDER}"/>`,
    ...(title === null
      ? []
      : [text(MARGIN, MARGIN + 12, title, 'font-size="13" font-weight="600"')]),
    ...axis(endMs, xOf, top, bottom),
    ...placed.flatMap(({ lane, y, isFirst }) => [
      ...(isFirst ? [text(MARGIN, y + 14, lane.group, 'font-weight="600"')] : []),
      text(NAME_X, y + 14, lane.name),
      ...blocksOf(lane.spans, endMs / PLOT_WIDTH).flatMap((block) =>
        drawBlock(block, lane.name, y, xOf, colourOf),
      ),
      text(
        WIDTH - MARGIN,
        y + 14,
        milliseconds(busyMs(lane.spans)),
        `text-anchor="end" fill="${FAINT_INK}"`,
      ),
    ]),
    '</svg>',
    '',
  ].join('\n')
}

function placeLanes(
  lanes: readonly Lane[],
  top: number,
): { lane: Lane; y: number; isFirst: boolean }[] {
  let y = top
  return lanes.map((lane, index) => {
    const isFirst = lanes[index - 1]?.group !== lane.group
    if (index > 0) y += LANE_PITCH + (isFirst ? GROUP_GAP : 0)
    return { lane, y, isFirst }
  })
}

/** Paler the more of a block is gaps; with its name where the lane has another. */
function drawBlock(
  { name, beginMs, endMs, busyMs: busy }: Block,
  laneName: string,
  y: number,
  xOf: (ms: number) => number,
  colourOf: (name: string) => string,
): string[] {
  const x = xOf(beginMs)
  const width = Math.max(1, xOf(endMs) - x)
  const share = endMs > beginMs ? busy / (endMs - beginMs) : 1
  const opacity =
    share > 0.995 ? '' : ` fill-opacity="${Math.max(OPACITY_LEAST, share).toFixed(2)}"`
  const rect = `<rect x="${x.toFixed(2)}" y="${y}" width="${width.toFixed(2)}" height="${LANE_HEIGHT}" fill="${colourOf(name)}"${opacity}/>`
  if (name === laneName || width < name.length * CHARACTER_WIDTH + 8) return [rect]
  const label = text(x + 4, y + 14, name, 'font-size="11" fill="#ffffff"')
  return [rect, label]
}

function axis(endMs: number, xOf: (ms: number) => number, top: number, bottom: number): string[] {
  const step = stepOf(endMs)
  const count = Math.floor(endMs / step + 1e-9)
  const ticks = Array.from({ length: count + 1 }, (_, index) => index * step)
  const digits = Math.max(0, -Math.floor(Math.log10(step)))
  return [
    ...ticks.flatMap((ms) => {
      const x = xOf(ms).toFixed(2)
      return [
        `<line x1="${x}" y1="${top - 2}" x2="${x}" y2="${bottom}" stroke="${GRID}"/>`,
        text(xOf(ms), bottom + 15, ms.toFixed(digits), `text-anchor="middle" fill="${FAINT_INK}"`),
      ]
    }),
    text(NAME_X, bottom + 15, 'ms', `fill="${FAINT_INK}"`),
    text(WIDTH - MARGIN, bottom + 15, 'total', `text-anchor="end" fill="${FAINT_INK}"`),
  ]
}

/** 1, 2 or 5 times a power of ten, in milliseconds. */
function stepOf(endMs: number): number {
  if (!(endMs > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(endMs / TICKS_MOST))
  return [1, 2, 5, 10]
    .map((times) => times * power)
    .find((step) => endMs / step <= TICKS_MOST) as number
}

/** The same name has the same colour in every lane. */
function colours(): (name: string) => string {
  const others = new Map<string, string>()
  return (name) => {
    const known = COLOURS[name] ?? others.get(name)
    if (known !== undefined) return known
    const next = OTHER_COLOURS[others.size % OTHER_COLOURS.length] as string
    others.set(name, next)
    return next
  }
}

function milliseconds(ms: number): string {
  return `${ms >= 100 ? ms.toFixed(0) : ms.toPrecision(3)} ms`
}

function text(x: number, y: number, words: string, attributes = ''): string {
  const fill = attributes.includes('fill=') ? '' : ` fill="${INK}"`
  const more = attributes === '' ? '' : ` ${attributes}`
  return `<text x="${x.toFixed(1)}" y="${y}"${fill}${more}>${escaped(words)}</text>`
}

/** XML has no control characters, escaped or not. */
function escaped(words: string): string {
  return words
    .replace(/[^\P{Cc}]+/gu, ' ')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
}

if (import.meta.main) {
  const [from, to, ...more] = process.argv.slice(2)
  if (from === undefined || to === undefined || more.length > 0) {
    process.stderr.write('usage: bun scripts/trace-picture.ts TRACE.json OUT.svg\n')
    process.exit(2)
  }
  try {
    writeFileSync(to, drawTrace(readTrace(readFileSync(from, 'utf8'))))
  } catch (error) {
    process.stderr.write(`${from}: ${(error as Error).message}\n`)
    process.exit(1)
  }
}
