import { afterEach, beforeEach, expect, test } from 'bun:test'
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { resetSync } from '@logtape/logtape'
import fc from 'fast-check'
import { configureLogging } from '../log.ts'
import { TestDir } from '../registry/testing/fixture.ts'
import { NO_RATES, type RatesDocument, RatesFile } from './rates-file.ts'

let dir: TestDir
const lines: string[] = []

beforeEach(() => {
  dir = new TestDir()
  lines.length = 0
  configureLogging({ format: 'text', level: 'warning', write: (line) => void lines.push(line) })
})

afterEach(() => {
  dir.remove()
  resetSync()
})

const path = () => join(dir.path, 'rates.json')

const rate = fc.double({ min: 1e6, max: 1e13, noNaN: true })
const seconds = fc.double({ min: 0, max: 1, noNaN: true }).map((value) => value + 0)

const document: fc.Arbitrary<RatesDocument> = fc.record({
  format: fc.constant(1 as const),
  devices: fc.array(
    fc.record({
      uuid: fc.string(),
      library: fc.constantFrom('host' as const, 'cuda' as const),
      h2d_bytes_per_second: rate,
    }),
  ),
  broadcasts: fc.array(
    fc.record({
      uuids: fc.array(fc.string()),
      library: fc.constantFrom('host' as const, 'cuda' as const),
      bytes_per_second: fc.array(rate, { maxLength: 5 }),
    }),
  ),
  engines: fc.array(
    fc.record({
      key: fc.string(),
      learnt: fc.array(
        fc.record({ bucket_s: seconds, tensor_s: seconds, reload_bytes_per_second: rate }),
        { maxLength: 5 },
      ),
    }),
  ),
})

test('what was written is read again, by whoever opens the file', async () => {
  await fc.assert(
    fc.asyncProperty(document, async (rates) => {
      await new RatesFile(dir.path).write(rates)
      expect(await new RatesFile(dir.path).read()).toEqual(rates)
    }),
    { numRuns: 50 },
  )
  expect(lines).toEqual([])
})

test('no file is no news', async () => {
  expect(await new RatesFile(dir.path).read()).toEqual(NO_RATES)
  expect(lines).toEqual([])
})

const DEVICE = { uuid: 'GPU-0', library: 'cuda', h2d_bytes_per_second: 5e10 }
const LEARNT = { bucket_s: 0, tensor_s: 0, reload_bytes_per_second: 1e9 }
const times = <T>(count: number, one: T): T[] => Array.from({ length: count }, () => one)
const OTHERS: Record<string, string> = {
  'a damaged one': JSON.stringify({ ...NO_RATES, devices: [DEVICE] }).slice(0, -3),
  'an empty one': '',
  'another version': JSON.stringify({ ...NO_RATES, format: 2, devices: [DEVICE] }),
  'unknown fields': JSON.stringify({ ...NO_RATES, devices: [{ ...DEVICE, colour: 'red' }] }),
  'a rate that no link has': JSON.stringify({
    ...NO_RATES,
    devices: [{ ...DEVICE, h2d_bytes_per_second: 1 }],
  }),
  'something else': '[1, 2]',
  'more than a mebibyte': JSON.stringify(NO_RATES).padEnd(2 ** 20 + 1),
  'too many devices': JSON.stringify({ ...NO_RATES, devices: times(65, DEVICE) }),
  'too many engines': JSON.stringify({
    ...NO_RATES,
    engines: times(65, { key: 'k', learnt: [LEARNT] }),
  }),
  'too much of an engine': JSON.stringify({
    ...NO_RATES,
    engines: [{ key: 'k', learnt: times(6, LEARNT) }],
  }),
  'too many groups': JSON.stringify({
    ...NO_RATES,
    broadcasts: times(65, { uuids: ['a', 'b'], library: 'cuda', bytes_per_second: [1e9] }),
  }),
  'too much of a group': JSON.stringify({
    ...NO_RATES,
    broadcasts: [{ uuids: ['a', 'b'], library: 'cuda', bytes_per_second: times(6, 1e9) }],
  }),
}

for (const [name, text] of Object.entries(OTHERS)) {
  test(`${name} is ignored with a line in the log, and replaced`, async () => {
    writeFileSync(path(), text)
    const file = new RatesFile(dir.path)
    expect(await file.read()).toEqual(NO_RATES)
    expect(lines).toHaveLength(1)
    expect(lines[0]).toContain('rates.json')
    await file.write(NO_RATES)
    expect(await file.read()).toEqual(NO_RATES)
    expect(lines).toHaveLength(1)
  })
}

test('as much as is ever written is read', async () => {
  const full: RatesDocument = {
    format: 1,
    devices: times(64, { ...DEVICE, library: 'cuda' as const }),
    broadcasts: times(64, {
      uuids: times(8, 'GPU-01234567-89ab-cdef-0123-456789abcdef'),
      library: 'cuda' as const,
      bytes_per_second: times(5, 1e11 / 3),
    }),
    engines: times(64, { key: 'http://localhost:19730', learnt: times(5, LEARNT) }),
  }
  await new RatesFile(dir.path).write(full)
  expect(await new RatesFile(dir.path).read()).toEqual(full)
})

test('a reader that has begun reads what it found, whatever is written meanwhile', async () => {
  const file = new RatesFile(dir.path)
  await file.write({ ...NO_RATES, devices: [{ ...DEVICE, library: 'cuda' }] })
  const reader = openSync(path(), 'r')
  await file.write(NO_RATES)
  expect(JSON.parse(readFileSync(reader, 'utf8')).devices).toEqual([DEVICE])
  closeSync(reader)
})

test('writers at the same time leave one whole document and no other file', async () => {
  const rates = (n: number): RatesDocument => ({
    ...NO_RATES,
    devices: Array.from({ length: n + 20 }, () => ({ ...DEVICE, library: 'cuda', uuid: `${n}` })),
  })
  const files = [new RatesFile(dir.path), new RatesFile(dir.path)]
  const written = Array.from({ length: 40 }, (_, n) => files[n % 2]!.write(rates(n)))
  for (let reads = 0; reads < 20; reads++) {
    const seen = await new RatesFile(dir.path).read()
    expect(seen).toEqual(rates(seen.devices.length - 20))
  }
  await Promise.all(written)
  expect(lines).toEqual([])
  expect(readdirSync(dir.path)).toEqual(['rates.json'])
  const last = JSON.parse(readFileSync(path(), 'utf8'))
  expect([rates(38), rates(39)]).toContainEqual(last)
})

test('a directory that is gone is a line in the log, and the next write is made all the same', async () => {
  const file = new RatesFile(dir.path)
  rmSync(dir.path, { recursive: true })
  await file.write(NO_RATES)
  expect(lines).toHaveLength(1)
  mkdirSync(dir.path)
  await file.write({ ...NO_RATES, devices: [{ ...DEVICE, library: 'cuda' }] })
  expect(lines).toHaveLength(1)
  expect(readdirSync(dir.path)).toEqual(['rates.json'])
  expect((await file.read()).devices).toHaveLength(1)
})

test('a write that cannot take its place leaves no file, and the next one is made all the same', async () => {
  const file = new RatesFile(dir.path)
  mkdirSync(path())
  await file.write(NO_RATES)
  await file.write(NO_RATES)
  expect(lines).toHaveLength(2)
  expect(readdirSync(dir.path)).toEqual(['rates.json'])
  rmdirSync(path())
  await file.write(NO_RATES)
  expect(lines).toHaveLength(2)
  expect(readdirSync(dir.path)).toEqual(['rates.json'])
})

test('who opens it removes what a crash has left, and nothing else', async () => {
  const others = ['journal.json.12.3', 'rates.json.old', 'rates.json.12.3.old']
  for (const name of [...others, 'rates.json.12.3', `rates.json.${process.pid}.99999`]) {
    writeFileSync(join(dir.path, name), '{')
  }
  await RatesFile.open(dir.path)
  expect(readdirSync(dir.path).sort()).toEqual(others.sort())
})

test('what is no regular file is not waited for', async () => {
  expect(Bun.spawnSync(['mkfifo', path()]).exitCode).toBe(0)
  expect(await new RatesFile(dir.path).read()).toEqual(NO_RATES)
  expect(lines).toHaveLength(1)
  expect(lines[0]).toContain('no regular file')
})
