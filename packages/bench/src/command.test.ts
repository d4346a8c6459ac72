import { expect, test } from 'bun:test'
import { outputOf } from './command.ts'

const shell = (script: string) => ['sh', '-c', script]

test('what a program prints, with its environment and its stdin', async () => {
  const options = { timeoutMs: 10_000, env: { WORD: 'told' }, input: 'given' }
  expect(await outputOf(shell('echo "$WORD"; cat; echo more >&2'), options)).toBe('told\ngiven')
})

test('one that fails is told with its last words, also when it has not read what it was given', async () => {
  const input = 'x'.repeat(2 ** 20)
  await expect(
    outputOf(shell('echo why >&2; exit 3'), { timeoutMs: 10_000, input }),
  ).rejects.toThrow('sh -c echo why >&2; exit 3 ended with status 3:\nwhy\n')
  await expect(outputOf(shell('echo only; exit 1'), { timeoutMs: 10_000 })).rejects.toThrow('only')
})

test('one that is late is ended', async () => {
  const waiting = outputOf(shell('echo begun >&2; exec sleep 60'), { timeoutMs: 300 })
  await expect(waiting).rejects.toThrow('was not done within 0.3 s:\nbegun\n')
})
