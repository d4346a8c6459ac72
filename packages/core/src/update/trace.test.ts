import { expect, test } from 'bun:test'
import { chromeTrace, spansOf, timelineRows } from './trace.ts'

test('a timeline is a trace that begins at 0, a process per group and a thread per row', () => {
  const trace = chromeTrace([
    {
      group: 'update',
      name: 'phases',
      spans: Float64Array.of(1000.5, 1001, 1001, 1004.25),
      labels: ['plan', 'transfer'],
    },
    { group: 'rank 0', name: 'h2d', spans: Float64Array.of(1001.12345, 1002.12345) },
    { group: 'rank 0', name: 'reload', spans: new Float64Array(0) },
  ])
  const name = (kind: 'process_name' | 'thread_name', pid: number, tid: number, text: string) => {
    return { ph: 'M' as const, name: kind, pid, tid, args: { name: text } }
  }
  expect(trace).toEqual({
    displayTimeUnit: 'ms',
    traceEvents: [
      name('process_name', 1, 0, 'update'),
      name('thread_name', 1, 1, 'phases'),
      { ph: 'X', name: 'plan', cat: 'update', pid: 1, tid: 1, ts: 0, dur: 500 },
      { ph: 'X', name: 'transfer', cat: 'update', pid: 1, tid: 1, ts: 500, dur: 3250 },
      name('process_name', 2, 0, 'rank 0'),
      name('thread_name', 2, 2, 'h2d'),
      { ph: 'X', name: 'h2d', cat: 'rank 0', pid: 2, tid: 2, ts: 623.5, dur: 1000 },
      name('thread_name', 2, 3, 'reload'),
    ],
  })
  expect(chromeTrace([]).traceEvents).toEqual([])
})

test('spans that touch still do when they are rounded', () => {
  const ms = [0, 0.00017, 0.00034, 0.00051, 0.00068]
  const spans = Float64Array.from(ms.slice(1).flatMap((end, i) => [ms[i]!, end]))
  const { traceEvents } = chromeTrace([{ group: 'update', name: 'phases', spans }])
  const drawn = traceEvents.filter((event) => event.ph === 'X')
  expect(drawn.map(({ ts, dur }) => [ts, dur])).toEqual([
    [0, 0.2],
    [0.2, 0.1],
    [0.3, 0.2],
    [0.5, 0.2],
  ])
})

test('the rows of a trace are those that it was made of, on its clock', () => {
  const rows = [
    {
      group: 'update',
      name: 'phases',
      spans: Float64Array.of(1000, 1000.5, 1000.5, 1004.25),
      labels: ['plan', 'transfer'],
    },
    { group: 'rank 0', name: 'h2d', spans: Float64Array.of(1001.125, 1002.25) },
    { group: 'rank 0', name: 'reload', spans: new Float64Array(0) },
    { group: 'rank 1', name: 'h2d', spans: Float64Array.of(1003, 1004) },
  ]
  const trace = chromeTrace(rows)
  const read = timelineRows(trace)
  expect(read).toEqual(rows.map((row) => ({ ...row, spans: row.spans.map((ms) => ms - 1000) })))
  expect(chromeTrace(read)).toEqual(trace)
  expect(read.map(spansOf).slice(0, 3)).toEqual([
    [
      { name: 'plan', beginMs: 0, endMs: 0.5 },
      { name: 'transfer', beginMs: 0.5, endMs: 4.25 },
    ],
    [{ name: 'h2d', beginMs: 1.125, endMs: 2.25 }],
    [],
  ])
  expect(timelineRows(chromeTrace([]))).toEqual([])
  const traceEvents = trace.traceEvents.filter(({ ph }) => ph === 'X')
  expect(() => timelineRows({ ...trace, traceEvents })).toThrow('row 1, which has no name')
})

test('a thread is of its group: another group may have its number', () => {
  const named = (pid: number, name: string) =>
    ({ ph: 'M', name: 'thread_name', pid, tid: 1, args: { name } }) as const
  const span = { ph: 'X', name: 'h2d', cat: '', pid: 2, tid: 1, ts: 0, dur: 1 } as const
  const traceEvents = [named(1, 'phases'), named(2, 'h2d'), span]
  const rows = timelineRows({ displayTimeUnit: 'ms', traceEvents })
  expect(rows.map(({ name, spans }) => [name, spans.length])).toEqual([
    ['phases', 0],
    ['h2d', 2],
  ])
})

test('spans that touch still do when they are read', () => {
  const ms = Array.from({ length: 200 }, (_, i) => 1000 + i * 0.0137)
  const spans = Float64Array.from(ms.slice(1).flatMap((end, i) => [ms[i]!, end]))
  const [row] = timelineRows(chromeTrace([{ group: 'update', name: 'phases', spans }]))
  const read = spansOf(row!)
  expect(read).toHaveLength(199)
  for (const [i, { beginMs }] of read.entries()) {
    if (i > 0) expect(beginMs).toBe(read[i - 1]!.endMs)
  }
})
