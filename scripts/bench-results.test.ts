import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT, run as runProcess, type Scratch, scratch } from '../test/support/process.ts'
import { CPU, gpuOf, rowsOf } from '../packages/bench/src/trainer.ts'
import { workloads } from '../packages/bench/src/workloads.ts'
import { readRecorded, replaceSection, run, sectionOf } from './bench-results.ts'

const README = '# x\n\nbefore\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n'

let dir: Scratch
beforeEach(() => {
  dir = scratch()
  mkdirSync(join(dir.path, 'docs/bench'), { recursive: true })
  writeFileSync(join(dir.path, 'README.md'), README)
})
afterEach(() => dir.remove())

const record = (name: string, document: unknown) =>
  writeFileSync(join(dir.path, 'docs/bench', name), JSON.stringify(document))
const readme = () => readFileSync(join(dir.path, 'README.md'), 'utf8')

function row(bench: string, name: string, change: object = {}) {
  const rates = { gb_per_s: 50, limit_gb_per_s: 55.5 }
  return { bench, case: name, p50_s: 0.3, ...rates, claims: [], ...change }
}

const claim = (what: string, change: object = {}) => {
  return { what, figure: 97.123, unit: '%', must: 'at_least', bound: 96, holds: true, ...change }
}

function documentOf(rows: readonly object[], header: object = {}) {
  return {
    ok: true,
    header: {
      date: '2026-01-31',
      command: 'bun run bench --json',
      ckpt: '0.1.0',
      bun: '1.4.5',
      library: 'cuda',
      os: 'Linux 6.8',
      driver: '580.65.06',
      cuda: '13.0',
      devices: [{ name: 'A card' }, { name: 'A card' }],
      ...header,
    },
    rows,
    compared: 12,
    wrong: 1,
    error: null,
  }
}

test("the README's figures are those that are recorded (else: bun scripts/bench-results.ts)", async () => {
  const script = join(ROOT, 'scripts/bench-results.ts')
  const { status, stderr } = await runProcess([process.execPath, script, '--check'])
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
})

test('a document gives a caption and a table', () => {
  record(
    'card.json',
    documentOf([
      row('h2d', '1 MiB pinned, 16 on 2 streams'),
      row('h2d', '1 GiB pinned, 4 on 2 streams'),
      row('h2d', '1 GiB pinned, one copy'),
      row('h2d', 'pinned, rows of 192 B, pitch of 2 rows'),
      row('h2d', 'pinned, rows of 8 KiB, pitch of 8 rows'),
      row('plan', '399 tensors', { gb_per_s: null, limit_gb_per_s: null }),
      row('fresh', 'dense', {
        claims: [
          claim('fresh dense', {
            figure: 0.61,
            unit: 's',
            must: 'at_most',
            bound: 0.55,
            holds: false,
          }),
        ],
      }),
      row('update', 'dense | moe', {
        p50_s: 0.012345,
        claims: [
          claim('update: of the rate'),
          claim('update: left', { figure: null, holds: false }),
        ],
      }),
    ]),
  )
  expect(run(dir.path, false)).toEqual({
    status: 0,
    message: 'README.md was written from 1 documents',
  })
  expect(readme()).toBe(`# x

before
<!-- bench:begin -->
**2 x A card**, 2026-01-31: ckpt 0.1.0, Bun 1.4.5, driver 580.65.06, CUDA 13.0, Linux 6.8; \`bun run bench --json\` ([all rows](docs/bench/card.json)). Of 12 compared ranges 1 were wrong.

| what | GB/s | of limit | measured | wanted | holds |
|---|--:|--:|--:|--:|---|
| update dense \\| moe | 50.00 | 90.1 % | 12.35 ms | | |
| update: of the rate | | | 97.12 % | at least 96 % | yes |
| update: left | | | unknown | at least 96 % | **no** |
| fresh dense | 50.00 | 90.1 % | 0.61 s | at most 0.55 s | **no** |
| h2d 1 GiB pinned, 4 on 2 streams | 50.00 | 90.1 % | 0.3 s | | |
| h2d 1 GiB pinned, one copy | 50.00 | 90.1 % | 0.3 s | | |
| h2d pinned, rows of 8 KiB, pitch of 8 rows | 50.00 | 90.1 % | 0.3 s | | |
<!-- bench:end -->
after
`)
  expect(run(dir.path, true).status).toBe(0)
})

test('a document of the trainer has a line for each place of its tensors', () => {
  const [dense] = workloads([], ['dense'])
  const checked = { compared: 399, wrong: 0 }
  const slow = { seconds: [6, 6, 0.8], d2h_gb_per_s: [], sha256: {} }
  const fast = { seconds: [9, 9, 0.32], d2h_gb_per_s: [54.3], sha256: {} }
  const rows = [
    ...rowsOf(dense!, gpuOf(0), fast, checked, true),
    ...rowsOf(dense!, CPU, slow, checked, true),
  ]
  record('card.json', documentOf(rows))
  const lines = sectionOf(readRecorded(dir.path), null).split('\n')
  expect(lines.filter((line) => line.startsWith('| trainer'))).toEqual([
    '| trainer dense, tensors on the GPU, of the D2H rate | 51.19 | 94.3 % | 94.28 % | at least 90 % | yes |',
    '| trainer dense, tensors in CPU memory | 20.48 | | 20.48 GB/s | at least 25 GB/s | **no** |',
  ])
})

test('a README that differs fails the check, which says what to run and writes nothing', () => {
  expect(run(dir.path, true)).toEqual({
    status: 1,
    message: 'README.md is not what docs/bench gives: run `bun scripts/bench-results.ts`',
  })
  expect(readme()).toBe(README)
})

test('without documents the section says so; a picture is shown', () => {
  expect(sectionOf([], null)).toBe('Nothing was recorded yet.')
  writeFileSync(join(dir.path, 'docs/bench/update-trace.svg'), '<svg/>')
  run(dir.path, false)
  expect(readme()).toContain('](docs/bench/update-trace.svg)\n<!-- bench:end -->')
})

test('the newest document comes first', () => {
  record('a.json', documentOf([], { date: '2026-01-01' }))
  record('b.json', documentOf([], { date: '2026-02-01' }))
  record('c.json', documentOf([], { date: '2026-02-01' }))
  expect(readRecorded(dir.path).map(({ path }) => path)).toEqual([
    'docs/bench/b.json',
    'docs/bench/c.json',
    'docs/bench/a.json',
  ])
})

test('of more than 25 lines the last ones without a bound go', () => {
  const many = Array.from({ length: 30 }, (_, index) => row('fresh', `case ${index}`))
  record(
    'a.json',
    documentOf([...many, row('register', 'kept', { claims: [claim('register kept')] })]),
  )
  const section = sectionOf(readRecorded(dir.path), null)
  expect(section.match(/^\| (fresh|register) /gm)).toHaveLength(25)
  expect(section).toContain('| fresh case 23 |')
  expect(section).toContain('| register kept |')
  expect(section).toEndWith(
    '\n\nRows with a limit that are left out here, because the table would be long: 6.',
  )
})

test('a run that ended early is told', () => {
  const error = { code: 'internal', message: 'no <memory> left' }
  record('a.json', { ...documentOf([]), error })
  expect(sectionOf(readRecorded(dir.path), null)).toEndWith(
    'The run ended early: no \\<memory\\> left.\n\nNo row has a limit or a bound.',
  )
})

const SHAPES: Record<string, unknown> = {
  'another document': { traceEvents: [] },
  'a header without a date': documentOf([], { date: undefined }),
  'a date that is none': documentOf([], { date: 'yesterday' }),
  'a row without claims': documentOf([row('update', 'x', { claims: undefined })]),
  'no devices': documentOf([], { devices: [] }),
}
for (const [name, document] of Object.entries(SHAPES)) {
  test(`${name} is refused with the file's name`, () => {
    record('odd.json', document)
    const { status, message } = run(dir.path, false)
    expect(status).toBe(1)
    expect(message).toStartWith('docs/bench/odd.json is no document of `bun run bench --json`: ')
    expect(readme()).toBe(README)
  })
}

test('what is no JSON is refused too', () => {
  writeFileSync(join(dir.path, 'docs/bench/odd.json'), '# ckpt 0.1.0\n')
  expect(run(dir.path, false).message).toStartWith('docs/bench/odd.json is no JSON: ')
})

test('the README must have both markers, each once', () => {
  const [begin, end] = ['<!-- bench:begin -->', '<!-- bench:end -->']
  for (const text of ['', begin, end, end + begin, begin + begin + end, begin + end + end]) {
    expect(() => replaceSection(text, 'x')).toThrow('each once')
  }
})
