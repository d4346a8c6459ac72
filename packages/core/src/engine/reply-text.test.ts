import { describe, expect, test } from 'bun:test'
import { describeReply } from './reply-text.ts'

const encode = (text: string) => new TextEncoder().encode(text)

describe('the words of a worker', () => {
  test('a UTF-8 traceback, without the space around it', () => {
    const traceback = 'Traceback (most recent call last):\n\tRuntimeError: zu groß \u{1f600}'
    expect(describeReply(encode(`${traceback}\n`))).toEqual({ words: traceback, text: true })
  })

  test('of a long one the end', () => {
    const { words } = describeReply(encode(`${'x'.repeat(5000)}RuntimeError: here`))
    expect(words).toHaveLength(4003)
    expect(words).toStartWith('...xxx')
    expect(words).toEndWith('RuntimeError: here')
  })

  test('opaque bytes are counted and not shown', () => {
    // a pickle, UTF-8 that is cut off, control characters of a terminal
    for (const body of [
      Uint8Array.of(0x80, 0x41, 0x42),
      encode('é').subarray(0, 1),
      encode('\x1b[31m'),
      encode('a\0b'),
      encode('\u0085'),
    ]) {
      expect(describeReply(body)).toEqual({ words: `${body.length} opaque bytes`, text: false })
    }
  })
})
