import { expect, test } from 'bun:test'
import { chromeTrace } from './trace.ts'

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
