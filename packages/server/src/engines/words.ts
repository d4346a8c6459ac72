const WORDS_MAX = 8000
const DEPTH_MAX = 4

/**
 * What an engine's answer says in its own words: the text at `error`, `message` or `detail` of a JSON body (FastAPI, vLLM,
 * SGLang), the failed entries of `results` (collective_rpc), or else the whole text. Long texts keep their end, which is
 * where a traceback has its exception.
 */
export function engineWords(json: unknown, text: string): string {
  const words = wordsIn(json, 0) ?? text.trim()
  return words.length > WORDS_MAX ? `... ${words.slice(-WORDS_MAX)}` : words
}

function wordsIn(value: unknown, depth: number): string | null {
  if (typeof value === 'string') return value.trim() === '' ? null : value.trim()
  if (depth === DEPTH_MAX || value === null || typeof value !== 'object') return null
  if (Array.isArray(value)) {
    const parts = value.flatMap((one) => wordsIn(one, depth + 1) ?? [])
    return parts.length === 0 ? null : [...new Set(parts)].join('; ')
  }
  const fields = value as Record<string, unknown>
  for (const field of ['error', 'message', 'detail', 'msg', 'results']) {
    const words = wordsIn(fields[field], depth + 1)
    if (words !== null) return words
  }
  return null
}
