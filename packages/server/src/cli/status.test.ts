import { expect, test } from 'bun:test'
import { engineState } from './status.ts'

const RATES = { bucket_s: 2e-4, tensor_s: 2e-5, bytes_per_second: 1.5e12, from: 'default' } as const
const ENGINE = {
  url: 'http://e',
  dialect: null,
  version: null,
  torn: false,
  updated: false,
  rates: RATES,
}

test('what is said of an engine', () => {
  expect(engineState(ENGINE)).toBe('has taken no update of this daemon')
  expect(engineState({ ...ENGINE, updated: true })).toBe('ok')
  expect(engineState({ ...ENGINE, updated: true, torn: true })).toBe(
    'torn: it holds a part of an update',
  )
  expect(engineState({ ...ENGINE, torn: true, engine_restart_needed: true })).toBe(
    'torn: it holds a part of an update; it must be started again',
  )
})
