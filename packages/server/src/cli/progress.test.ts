import { expect, test } from 'bun:test'
import { Progress } from './progress.ts'

test('where no line can show it, a wait is said once of each engine, however its reason changes', () => {
  const lines: string[] = []
  const progress = new Progress({ write: (text) => void lines.push(text) })
  for (let tries = 0; tries < 100; tries++) {
    for (const url of ['http://a', 'http://b']) progress.waits(url, `${url}: try ${tries}`)
  }
  expect(lines).toEqual(['ckpt: http://a: try 0\n', 'ckpt: http://b: try 0\n'])
})

test('a terminal shows it in the line instead', () => {
  const lines: string[] = []
  const write = (text: string) => void lines.push(text)
  new Progress({ isTTY: true, write }).waits('http://a', 'it is not there')
  expect(lines).toEqual([])
})
