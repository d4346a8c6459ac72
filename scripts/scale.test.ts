import { expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ROOT } from '../test/support/process.ts'
import { replaceSection } from './bench-results.ts'
import { clusters, deviation, direct, measured, section } from './scale.ts'

setDefaultTimeout(60_000)

/** Of a prediction from what really happened. */
const DEVIATION_MOST = 0.15

test('docs/scale.md has what the code predicts', () => {
  const text = readFileSync(join(ROOT, 'docs/scale.md'), 'utf8')
  expect(replaceSection(text, section(ROOT))).toBe(text)
})

test('updates of a real vLLM were as the simulation says', () => {
  const all = measured(ROOT)
  // replayed and ordinary, of both models, on two hosts
  expect(all.length).toBeGreaterThanOrEqual(24)
  for (const one of all) expect(Math.abs(deviation(one))).toBeLessThan(DEVIATION_MOST)
})

test('direct updates of a real vLLM took what the rate of their link says', () => {
  const all = direct(ROOT)
  expect(all.length).toBeGreaterThanOrEqual(10)
  for (const one of all) expect(Math.abs(deviation(one))).toBeLessThan(DEVIATION_MOST)
})

test('updates of four daemons were as the simulation says, where links are what they wait for', () => {
  const all = clusters(ROOT).filter(({ claimed }) => claimed)
  expect(all.length).toBeGreaterThanOrEqual(3)
  for (const one of all) expect(Math.abs(deviation(one))).toBeLessThan(DEVIATION_MOST)
})
