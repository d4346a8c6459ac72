import { expect, test } from 'bun:test'
import { engineWords } from './words.ts'

const CASES: [unknown, string][] = [
  [{ error: { message: 'boom', type: 'x' } }, 'boom'],
  [{ success: false, message: 'no' }, 'no'],
  [{ detail: [{ loc: ['body'], msg: 'field required' }] }, 'field required'],
  [{ results: [{ ok: true }, { ok: false, error: 'rank 1 failed' }] }, 'rank 1 failed'],
  [{ error: '' }, '{"error":""}'],
  [{ unknown: 'words' }, '{"unknown":"words"}'],
  ['text', 'text'],
]

for (const [json, words] of CASES) {
  test(`the words of ${JSON.stringify(json)}`, () => {
    expect(engineWords(json, JSON.stringify(json))).toBe(words)
  })
}

test('a text that is not JSON is said as it is, a long one with its end', () => {
  expect(engineWords(undefined, ' Internal Server Error\n')).toBe('Internal Server Error')
  const long = engineWords({ message: `${'x'.repeat(20_000)} the exception` }, '')
  expect(long.length).toBeLessThan(9000)
  expect(long).toEndWith('the exception')
})
