/** Writes one JSON document to stdout, completely: `process.exit` would cut what a pipe has not taken yet. */
export async function printJson(document: unknown): Promise<void> {
  await Bun.write(Bun.stdout, `${JSON.stringify(document, null, 2)}\n`)
}

export async function printText(text: string): Promise<void> {
  await Bun.write(Bun.stdout, text.endsWith('\n') ? text : `${text}\n`)
}

/** A command's result: the document for machines, or the text for people. */
export async function print(json: boolean, document: unknown, text: () => string): Promise<void> {
  if (json) await printJson(document)
  else await printText(text())
}
