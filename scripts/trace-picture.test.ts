import { expect, test } from 'bun:test'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { chromeTrace, type TimelineRow } from '@ckpt/core'
import { ROOT, run, scratch } from '../test/support/process.ts'
import { blocksOf, readTrace } from './trace-lanes.ts'
import { drawTrace } from './trace-picture.ts'

const ROWS: readonly TimelineRow[] = [
  {
    group: 'update',
    name: 'phases',
    spans: Float64Array.of(1000, 1010, 1010, 1100),
    labels: ['plan', 'transfer'],
  },
  { group: 'update', name: 'read', spans: new Float64Array(0) },
  { group: 'rank 0', name: 'h2d', spans: Float64Array.of(1010, 1030, 1060, 1080) },
  { group: 'rank 0', name: 'reload', spans: Float64Array.of(1030, 1100) },
  { group: 'rank 1', name: 'h2d', spans: Float64Array.of(1010, 1035) },
]
const picture = (rows: readonly TimelineRow[], more: object = {}) =>
  drawTrace(readTrace(JSON.stringify({ ...chromeTrace(rows), ...more })))

/** Texts, and rectangles as `[x, width, colour]`, in their order. */
const texts = (svg: string) => [...svg.matchAll(/<text [^>]*>([^<]*)</g)].map((match) => match[1])
const rects = (svg: string) =>
  [...svg.matchAll(/<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" [^>]*fill="(#\w+)"/g)].map(
    ([, x, width, colour]) => [Number(x), Number(width), colour] as const,
  )

test('a lane for each row that had work, named at the left, with its time at the right', () => {
  expect(texts(picture(ROWS))).toEqual([
    '0',
    '20',
    '40',
    '60',
    '80',
    '100',
    'ms',
    'total',
    'update',
    'phases',
    'plan',
    'transfer',
    '100 ms',
    'rank 0',
    'h2d',
    '40.0 ms',
    'reload',
    '70.0 ms',
    'rank 1',
    'h2d',
    '25.0 ms',
  ])
})

test('spans lie where their times are, a stage has one colour', () => {
  const [plan, transfer, first, second, reload, other] = rects(picture(ROWS)).slice(1)
  const [begin, end] = [plan![0], transfer![0] + transfer![1]]
  const xOf = (share: number) => begin + (end - begin) * share
  expect(first![0]).toBeCloseTo(xOf(0.1), 1)
  expect(first![1]).toBeCloseTo((end - begin) * 0.2, 1)
  expect(second![0]).toBeCloseTo(xOf(0.6), 1)
  expect(reload![0]).toBeCloseTo(xOf(0.3), 1)
  expect([second![2], other![2]]).toEqual([first![2], first![2]])
  expect(new Set([plan![2], transfer![2], first![2], reload![2]]).size).toBe(4)
})

test('the picture stands alone, has a background and is the same for the same trace', () => {
  const svg = picture(ROWS)
  expect(svg).toStartWith('<svg xmlns="http://www.w3.org/2000/svg" width="960" ')
  expect(svg).toEndWith('</svg>\n')
  expect(svg).not.toMatch(/<script|<style|href|url\(|<image/)
  expect(rects(svg)[0]!.slice(0, 2)).toEqual([0.5, 959])
  expect(picture(ROWS)).toBe(svg)
})

test('a trace whose clock began before gives the same picture', () => {
  const traceEvents = chromeTrace(ROWS).traceEvents.map((event) =>
    event.ph === 'X' ? { ...event, ts: event.ts + 5000 } : event,
  )
  expect(picture(ROWS, { traceEvents })).toBe(picture(ROWS))
})

test('text is escaped', () => {
  const title = 'a <b> & "c"\u0000\n'
  const svg = picture(
    [{ group: '<g>', name: 'n&m', spans: Float64Array.of(0, 5), labels: ['</svg>'] }],
    { otherData: { title } },
  )
  expect(texts(svg)).toEqual([
    'a &lt;b&gt; &amp; "c" ',
    '0',
    '1',
    '2',
    '3',
    '4',
    '5',
    'ms',
    'total',
    '&lt;g&gt;',
    'n&amp;m',
    '&lt;/svg&gt;',
    '5.00 ms',
  ])
  expect(svg).toContain('<title>a &lt;b&gt; &amp; "c" </title>')
})

test('what a pixel cannot tell apart is one block, which knows how much of it was work', () => {
  const span = (beginMs: number, endMs: number, name = 'h2d') => ({ name, beginMs, endMs })
  const near = [span(0, 0.5), span(1, 1.5), span(2, 2.5)]
  expect(blocksOf(near, 1)).toEqual([{ name: 'h2d', beginMs: 0, endMs: 2.5, busyMs: 1.5 }])
  expect(blocksOf(near, 0.5)).toHaveLength(3)
  expect(blocksOf([span(0, 2), span(2.1, 4)], 1)).toHaveLength(2)
  expect(blocksOf([span(0, 0.1), span(0.1, 0.2, 'reload')], 1)).toHaveLength(2)
  expect(blocksOf([span(0, 1), span(0.5, 0.7)], 1)).toEqual([{ ...span(0, 1), busyMs: 1 }])
})

test('a hundred thousand spans give a small picture, in which a gap stays a gap', () => {
  const spans = Float64Array.from({ length: 200_000 }, (_, i) => {
    const beginMs = (i >> 1) * 0.01
    return beginMs + (i % 2) * 0.005 + (beginMs > 400 ? 100 : 0)
  })
  const svg = picture([{ group: 'rank 0', name: 'h2d', spans }])
  expect(svg.length).toBeLessThan(100_000)
  expect(svg).toContain('fill-opacity="0.5')
  const [, ...blocks] = rects(svg)
  const gaps = blocks.slice(1).map(([x], i) => x - (blocks[i]![0] + blocks[i]![1]))
  expect(gaps.filter((gap) => gap > 10)).toHaveLength(1)
})

test('what cannot be drawn is refused', () => {
  const read = (trace: unknown) => () => readTrace(JSON.stringify(trace))
  expect(read(chromeTrace([]))).toThrow('the trace has no spans')
  expect(read(chromeTrace([ROWS[1]!]))).toThrow('the trace has no spans')
  for (const other of [{ ok: true }, [], null, 1]) expect(read(other)).toThrow('no Chrome trace')
  expect(read({ traceEvents: [null] })).toThrow('no Chrome trace')
  const span = { ph: 'X', name: 'a', pid: 1, tid: 1, ts: 0, dur: 1 }
  expect(read({ traceEvents: [span] })).toThrow('no name')
  expect(read({ traceEvents: [{ ...span, ts: '0' }] })).toThrow('the ts of a span is "0"')
  expect(() => readTrace('{')).toThrow('JSON')
})

test('the program writes the file, or says what is wrong', async () => {
  const dir = scratch()
  try {
    const [trace, svg] = [join(dir.path, 'trace.json'), join(dir.path, 'out.svg')]
    const script = [process.execPath, join(ROOT, 'scripts/trace-picture.ts')]
    writeFileSync(trace, JSON.stringify(chromeTrace(ROWS)))
    expect(await run([...script, trace, svg])).toEqual({ status: 0, stdout: '', stderr: '' })
    expect(readFileSync(svg, 'utf8')).toBe(picture(ROWS))
    expect((await run([...script, trace])).status).toBe(2)
    writeFileSync(trace, JSON.stringify(chromeTrace([])))
    const { status, stderr } = await run([...script, trace, svg])
    expect([status, stderr]).toEqual([
      1,
      `${trace}: the trace has no spans: there is nothing to draw\n`,
    ])
  } finally {
    dir.remove()
  }
})
