#include "check.h"

int main() {
  for (const Test& test : Test::all()) test.execute();
  std::printf("%zu passed, %d failed\n", Test::all().size() - Test::failed(), Test::failed());
  return Test::failed() == 0 ? 0 : 1;
}
