-- Does not block: the second one is left out. Many of them say that a till sends before it hears that it was heard.
AUDIT (
  name receipts_are_sent_once,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  reason = 'sent twice';

-- Does not block: sales that were made meanwhile are looked up again. Who enters prices should know.
AUDIT (
  name versions_are_entered_in_time,
  blocking FALSE
);

SELECT
  *
FROM @this_model
WHERE
  loaded_at > updated_at + INTERVAL '5' MINUTES;
