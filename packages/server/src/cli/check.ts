/** What `ckpt doctor` says of one thing. */
export interface Check {
  readonly name: string
  /** `missing`: nothing works without it; `absent`: a part of the program does not; `note`: works, but could be better. */
  readonly state: 'ok' | 'missing' | 'absent' | 'note'
  readonly found: string
  /** What to do about it, when not ok. */
  readonly fix?: string
}
