/**
 * The most characters of an engine's own words that a message repeats; of a traceback the end tells
 * most.
 */
const TEXT_CHARACTERS = 4000

/**
 * What a non-empty reply of a worker says. D3 and D4 send a UTF-8 traceback, D2 a pickled
 * exception, which is never loaded.
 *
 * @returns `text` false: the bytes are opaque and `words` says how many they are
 */
export function describeReply(body: Uint8Array): { words: string; text: boolean } {
  const text = printableText(body)
  if (text === null) return { words: `${body.length} opaque bytes`, text: false }
  return { words: shorten(text.trim()), text: true }
}

function printableText(body: Uint8Array): string | null {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(body)
    // control characters other than tab, line feed and carriage return do not belong in a message
    return /[^\P{Cc}\t\n\r]/u.test(text) ? null : text
  } catch {
    return null
  }
}

function shorten(text: string): string {
  return text.length > TEXT_CHARACTERS ? `...${text.slice(-TEXT_CHARACTERS)}` : text
}
