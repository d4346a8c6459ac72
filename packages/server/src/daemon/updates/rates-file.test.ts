import { afterEach, beforeEach, expect, test } from 'bun:test'
import { closeSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
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
      bytes_per_second: fc.array(rate),
    }),
  ),
  engines: fc.array(
    fc.record({
      key: fc.string(),
      learnt: fc.array(
        fc.record({ bucket_s: seconds, tensor_s: seconds, reload_bytes_per_second: rate }),
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
    devices: Array.from({ length: n * 20 }, () => ({ ...DEVICE, library: 'cuda', uuid: `${n}` })),
  })
  const files = [new RatesFile(dir.path), new RatesFile(dir.path)]
  const written = Array.from({ length: 40 }, (_, n) => files[n % 2]!.write(rates(n)))
  for (let reads = 0; reads < 20; reads++) {
    const seen = await new RatesFile(dir.path).read()
    expect(seen).toEqual(rates(seen.devices.length / 20))
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
  dir = new TestDir()
  const there = new RatesFile(dir.path)
  await there.write(NO_RATES)
  expect(readdirSync(dir.path)).toEqual(['rates.json'])
})
